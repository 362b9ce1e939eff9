"""Perturbed image embeddings: the language-free condition (DESIGN section 5).

A CLIP image embedding is turned by a random angle on the unit sphere, so that the embedding of a
text, which lies at some angle from that of its image, is a condition that training has covered.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

KINDS = ("fixed", "gaussian", "uniform", "truncated", "learnable")


def perturb(
    y: Tensor,
    kind: str,
    scale: float,
    *,
    mean: float = 0.0,
    trunc_a: float = -1.0,
    trunc_b: float = 1.0,
    generator: torch.Generator | None = None,
    noise: Tensor | None = None,
    level: Tensor | None = None,
    first: int = 0,
    total: int | None = None,
) -> Tensor:
    """y (N, D) -> normalise(y/|y| + p n) (N, D), with a random unit vector n and a level p.

    The level, one number for each row, is by `kind`
      fixed       scale
      gaussian    N(0, scale²)
      uniform     U(0, scale)
      truncated   N(mean, scale²) conditioned on trunc_a <= p <= trunc_b
      learnable   given as `level` (N, D): the output of a LearnedLevel (see LearnedPerturbation)
    noise (N, D; of any length) and level (N,), (N, 1) or (N, D) replace what would be drawn, noise
    before level, from `generator` (on the device of y).
    first, total: y are the rows from `first` on of a batch of `total`, for all of which is drawn.
    Raises ValueError for an unknown kind, for learnable without a level, and for an empty interval.
    """
    own, whole = slice(first, first + len(y)), (total or len(y), y.shape[1])
    options = {"dtype": y.dtype, "device": y.device}
    if noise is None:
        noise = torch.randn(whole, generator=generator, **options)[own]
    if level is None:
        level = draw_level(whole[0], kind, scale, mean, trunc_a, trunc_b, generator, **options)[own]
    elif level.ndim == 1:
        level = level[:, None]
    turned = torch.addcdiv(noise * (level / _length(noise)), y, _length(y))
    return turned / _length(turned)


def _length(x: Tensor) -> Tensor:
    """(N, D) -> (N, 1), never zero."""
    return torch.linalg.vector_norm(x, dim=1, keepdim=True).clamp_min(1e-12)


def draw_level(
    n: int,
    kind: str,
    scale: float,
    mean: float,
    trunc_a: float,
    trunc_b: float,
    generator: torch.Generator | None,
    **options: torch.dtype | torch.device,
) -> Tensor:
    """Draw a level for each of n conditions -> (n, 1), of the dtype and device in `options`."""
    shape = (n, 1)
    if kind == "fixed":
        return torch.full(shape, scale, **options)
    if kind == "gaussian":
        return scale * torch.randn(shape, generator=generator, **options)
    if kind == "uniform":
        return scale * torch.rand(shape, generator=generator, **options)
    if kind == "truncated":
        if trunc_a >= trunc_b:
            raise ValueError(f"truncation needs trunc_a < trunc_b, not {trunc_a} and {trunc_b}")
        level = torch.empty(shape, **options)
        return nn.init.trunc_normal_(level, mean, scale, trunc_a, trunc_b, generator=generator)
    if kind == "learnable":
        raise ValueError("the learnable perturbation needs the level that a LearnedLevel gives")
    raise ValueError(f"perturbation '{kind}' is not one of {', '.join(KINDS)}")


class LearnedLevel(nn.Module):
    """Level p = r2(y) as a vector (N, D): four linear layers, a ReLU after each."""

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
    """Perturbation whose level is trained with the denoiser; named as in published checkpoints."""

    def __init__(self, dim: int):
        super().__init__()
        self.r2_net = LearnedLevel(dim)

    def forward(self, y: Tensor, noise: Tensor) -> Tensor:
        """y and random directions `noise` of any length (N, D) -> (N, D) of unit length.

        Rows of zeros, which mean "no condition", stay as they are.
        """
        level = self.r2_net(F.normalize(y, dim=1))
        turned = perturb(y, "learnable", 1.0, noise=noise, level=level)
        return torch.where(y.any(dim=1, keepdim=True), turned, y)
