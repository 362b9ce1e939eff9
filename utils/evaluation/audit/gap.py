"""The gap between images and captions, and the dimensions that embeddings take up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models.geometry import Gap, modality_gap

WIDE = 45.0  # degrees from which on a gap counts as wide: 36 in the demo, 55 and 65 elsewhere


@dataclass(frozen=True)
class GapReport:
    """The gap of pairs, and the spectra of both sides.

    variance_images, variance_texts: (D,) variance of each principal direction, falling, of unit
    vectors. outside: fraction of the texts' variance outside the directions that hold 95 % of the
    images' variance.
    """

    gap: Gap
    variance_images: Tensor
    variance_texts: Tensor
    outside: float

    @property
    def angle(self) -> float:
        """Return the median angle of an image and its caption, degrees."""
        return float(self.gap.angle.median())


def spectrum(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the variances (D,), falling, and the directions (D, D) in columns, of x (N, D)."""
    values, vectors = torch.linalg.eigh(x.double().T.cov())
    return values.flip(0).clamp(min=0), vectors.flip(1)


def effective_dimensions(variances: Tensor) -> float:
    """Return the effective rank of variances (D,) (Roy & Vetterli 2007, definition 1).

    It is the exponential of their entropy: the number of directions if all varied equally.
    """
    p = variances / variances.sum()
    return float((-torch.xlogy(p, p).sum()).exp())


def measure_gap(images: Tensor, texts: Tensor) -> GapReport:
    """Measure the gap of pairs, images (N, D) and texts (N, D) of unit length, N >= 2."""
    of_images, directions = spectrum(images)
    held = of_images.cumsum(0) / of_images.sum()
    kept = directions[:, : int((held < 0.95).sum()) + 1]
    centred = texts.double() - texts.double().mean(dim=0)
    inside = float((centred @ kept).square().sum() / centred.square().sum().clamp(min=1e-12))
    gap = modality_gap(images, texts, torch.Generator().manual_seed(0))
    return GapReport(gap, of_images, spectrum(texts)[0], 1 - inside)


def first_captions(captions: Sequence[Sequence[str]]) -> list[str]:
    """Return one caption of each image: the first one of the first image, and so on in turn."""
    return [lines[i % len(lines)] for i, lines in enumerate(captions)]
