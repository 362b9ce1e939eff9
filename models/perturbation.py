"""Perturbed image embeddings: the condition of a training that sees no text.

A CLIP image embedding is perturbed by a random angle on the unit sphere. The embedding of a text
lies at some angle from that of its image, so training has covered conditions like it.
"""

import math
from dataclasses import dataclass
from typing import get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.batch_random import WHOLE_BATCH, BatchRandom
from models.choices import PerturbationKind


@dataclass(frozen=True)
class Perturbation:
    """How far embeddings are perturbed: the distribution of the noise scale p, one for each row.

    fixed       p = scale
    gaussian    p ~ N(0, scale²)
    uniform     p ~ U(0, scale)
    truncated   p ~ N(mean, scale²) conditioned on trunc_a <= p <= trunc_b
    learnable   p is the output of a LearnedScale; see LearnedPerturbation

    Raises ValueError for an unknown kind and for an empty interval.
    """

    kind: PerturbationKind
    scale: float
    mean: float = 0.0
    trunc_a: float = -1.0
    trunc_b: float = 1.0

    def __post_init__(self) -> None:
        if self.kind not in (kinds := get_args(PerturbationKind)):
            raise ValueError(f"perturbation '{self.kind}' is not one of {', '.join(kinds)}")
        if self.kind == "truncated" and self.trunc_a >= self.trunc_b:
            raise ValueError(
                f"truncation needs trunc_a < trunc_b, not {self.trunc_a} and {self.trunc_b}"
            )

    def __str__(self) -> str:
        if self.kind != "truncated":
            return f"{self.kind} {self.scale:g}"
        around = f", mean {self.mean:g}" if self.mean else ""
        return f"truncated {self.scale:g} [{self.trunc_a:g}, {self.trunc_b:g}]{around}"

    def random_scale(self, y: Tensor, rng: BatchRandom) -> Tensor:
        """Return a noise scale for each row of y (N, D) -> (N, 1), of the dtype and device of y.

        Raises ValueError for the learnable kind, whose scale a network gives.
        """
        shape = (len(y), 1)
        if self.kind == "fixed":
            return torch.full(shape, self.scale, device=y.device, dtype=y.dtype)
        if self.kind == "gaussian":
            return self.scale * rng.randn(shape, y.device, y.dtype)
        if self.kind == "uniform":
            return self.scale * rng.rand(shape, y.device, y.dtype)
        if self.kind == "truncated":
            # Apple's GPUs have no float64.
            dtype = torch.float32 if y.device.type == "mps" else torch.float64
            return self._truncated(rng.rand(shape, y.device, dtype)).to(y.dtype)
        raise ValueError("the learnable perturbation needs the scale that a LearnedScale gives")

    def _truncated(self, uniform: Tensor) -> Tensor:
        """Map numbers of U(0, 1) to those of the truncated normal, by its inverse distribution.

        PyTorch's own rejects numbers until all fit, and asks the device each time.
        """
        scale = max(self.scale, 1e-12)
        # The distribution function is exact far below the mean, and not far above it.
        sign = -1 if self.trunc_a > self.mean else 1
        ends = (sign * (bound - self.mean) / scale for bound in (self.trunc_a, self.trunc_b))
        low, high = (math.erfc(-end / math.sqrt(2)) / 2 for end in ends)
        value = self.mean + sign * scale * torch.special.ndtri(low + (high - low) * uniform)
        return value.clamp(self.trunc_a, self.trunc_b)


def perturb(y: Tensor, perturbation: Perturbation, rng: BatchRandom = WHOLE_BATCH) -> Tensor:
    """Perturb each row of y (N, D) in a random direction -> (N, D) of unit length.

    `rng` gives the directions, then the scales. Raises ValueError for the learnable kind.
    """
    directions = rng.randn(y.shape, device=y.device, dtype=y.dtype)
    return perturb_by(y, directions, perturbation.random_scale(y, rng))


def perturb_by(y: Tensor, directions: Tensor, scale: Tensor) -> Tensor:
    """normalise(y/|y| + p n/|n|) with y and directions n (N, D) -> (N, D).

    scale: p, (N, 1), or (N, D) for a scale of each feature.
    """
    perturbed = torch.addcdiv(directions * (scale / _length(directions)), y, _length(y))
    return perturbed / _length(perturbed)


def _length(x: Tensor) -> Tensor:
    """(N, D) -> (N, 1), never zero."""
    return torch.linalg.vector_norm(x, dim=1, keepdim=True).clamp_min(1e-12)


class LearnedScale(nn.Module):
    """Noise scale p = r2(y) as a vector (N, D): four linear layers, a ReLU after each."""

    def __init__(self, dim: int):
        super().__init__()
        for number in range(1, 5):
            self.add_module(f"layer{number}", nn.Linear(dim, dim))

    def forward(self, y: Tensor) -> Tensor:
        """y (N, D), normalised -> (N, D), not negative."""
        for layer in self.children():
            y = layer(y).relu()
        return y


class LearnedPerturbation(nn.Module):
    """Perturbation whose scale is trained with the denoiser; named as in published checkpoints."""

    def __init__(self, dim: int):
        super().__init__()
        self.r2_net = LearnedScale(dim)

    def forward(self, y: Tensor, directions: Tensor) -> Tensor:
        """Perturb y (N, D) by random directions (N, D) of any length -> (N, D) of unit length.

        Rows of zeros mean "no condition" and stay as they are.
        """
        perturbed = perturb_by(y, directions, self.r2_net(F.normalize(y, dim=1)))
        return torch.where(y.any(dim=1, keepdim=True), perturbed, y)
