"""Tests for dependence between sets of vectors, by how far they exceed chance."""

import torch
from torch import Tensor

PERMUTATIONS = 64


def pair_agreement(a: Tensor, b: Tensor) -> float:
    """Return how far rows of a (N, …) and b (N, …) belong together, in deviations above chance.

    It is the Hilbert-Schmidt independence criterion with linear kernels (Gretton et al. 2005,
    "Measuring statistical dependence with Hilbert-Schmidt norms", eq. 9), against that of shuffled
    rows. Independent rows give about 0, and seldom more than 4. Constant rows give nan.
    """
    return _above_chance(_rows(a), _rows(b))


def direction_agreement(a: Tensor, b: Tensor) -> float:
    """Return how far a (N, D) and b (M, D) vary along equal directions, in deviations above chance.

    It is the inner product of both covariance matrices, against that of shuffled dimensions. Rows
    need not belong together. Spaces that have nothing in common give about 0.
    """
    return _above_chance(_columns(a), _columns(b))


def _rows(x: Tensor) -> Tensor:
    x = x.float().flatten(1)
    x = x - x.mean(dim=0)
    return x @ x.T


def _columns(x: Tensor) -> Tensor:
    x = x.float() - x.float().mean(dim=0)
    return x.T @ x / len(x)


def _above_chance(x: Tensor, y: Tensor) -> float:
    """Compare the inner product of two Gram matrices with that after reorderings of one."""
    x, y = x / x.norm(), y / y.norm()
    generator = torch.Generator().manual_seed(0)
    orders = [torch.randperm(len(x), generator=generator) for _ in range(PERMUTATIONS)]
    chance = torch.stack([(x[order][:, order] * y).sum() for order in orders])
    return float(((x * y).sum() - chance.mean()) / chance.std())
