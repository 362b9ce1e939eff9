"""Geometry of CLIP embeddings, seen as directions: angles, the modality gap, mixtures.

Everything is computed in float64: small angles would drown in float32's rounding.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

STEPS = 200  # of the iteration at most; within a right angle a few are enough
CLOSE_ENOUGH = 1e-10  # radians


def angle_deg(a: Tensor, b: Tensor) -> Tensor:
    """Angle between the rows of a and b, (N, D) each of any length -> (N,) float64, degrees.

    By half-angle (Kahan 2006, "How futile are mindless assessments of roundoff", section 12), which
    is exact to rounding for small angles too, where the arc cosine is not.
    """
    a, b = F.normalize(a.double(), dim=1), F.normalize(b.double(), dim=1)
    return torch.rad2deg(2 * torch.atan2((a - b).norm(dim=1), (a + b).norm(dim=1)))


@dataclass(frozen=True)
class Gap:
    """How images and texts lie to each other; cosines (M,) float64, in no particular order."""

    matching: Tensor  # (N,) an image and its own text
    other: Tensor  # an image and the text of another
    images: Tensor  # two images
    texts: Tensor  # two texts, of different images
    distance: float  # between the means of the normalised embeddings
    angle: Tensor  # (N,) degrees, an image and its own text


def modality_gap(images: Tensor, texts: Tensor, generator: torch.Generator, pairs: int = 10) -> Gap:
    """Measure paired embeddings, images (N, D) and texts (N, D), N >= 2.

    `distance` is the length of the gap vector of Liang 2022 ("Mind the gap", section 4.1). Pairs of
    different samples are drawn with `generator`, `pairs` for each sample.
    Raises ValueError if there are fewer than two pairs, or their numbers differ.
    """
    if len(images) != len(texts) or len(images) < 2:
        raise ValueError(
            f"needs as many images as texts, two or more, not {len(images)}, {len(texts)}"
        )
    x, y = F.normalize(images.double(), dim=1), F.normalize(texts.double(), dim=1)
    # In random order the neighbours at a distance are random pairs, never of a sample with itself.
    order = torch.randperm(len(x), generator=generator)
    x, y = x[order], y[order]
    shifts = range(1, min(pairs, len(x) - 1) + 1)

    def cosines(a: Tensor, b: Tensor) -> Tensor:
        return torch.cat([(a * b.roll(shift, dims=0)).sum(dim=1) for shift in shifts])

    return Gap(
        matching=(x * y).sum(dim=1),
        other=cosines(x, y),
        images=cosines(x, x),
        texts=cosines(y, y),
        distance=float((x.mean(dim=0) - y.mean(dim=0)).norm()),
        angle=angle_deg(x, y),
    )


def towards_images(y: Tensor, image_mean: Tensor) -> Tensor:
    """Caption embeddings moved among image embeddings: normalise(y/|y| + m), (N, D) -> (N, D).

    image_mean m: (D,), mean of normalised image embeddings. Images share a direction that captions
    lack (Liang 2022, "Mind the gap"); adding it is the half of closing that gap by means (Zhang
    2024, "Connect, Collapse, Corrupt", section 4) that needs no caption.
    """
    return F.normalize(F.normalize(y, dim=1) + image_mean, dim=1)


def level_for_angle(angle: float) -> float:
    """Perturbation level whose typical angle is `angle` (degrees, below 90): its tangent.

    A random direction in many dimensions is nearly at a right angle to the embedding, so that the
    embedding plus p times it is turned by arctan(p).
    """
    if not 0 <= angle < 90:
        raise ValueError(f"no perturbation turns most embeddings by {angle:.1f} degrees")
    return float(torch.tensor(angle, dtype=torch.float64).deg2rad().tan())


def gaussian_for_angle(angle: float, share: float) -> float:
    """Scale s of N(0, s²) with which a share of the typical angles is above `angle` (degrees).

    P(|p| > tan(angle)) = share, with p ~ N(0, s²); see level_for_angle.
    """
    if not 0 < share < 1:
        raise ValueError(f"share {share:g} should be between 0 and 1")
    quantile = torch.special.ndtri(torch.tensor(1 - share / 2, dtype=torch.float64))
    return level_for_angle(angle) / float(quantile)


def mix(y: Tensor, weights: Tensor) -> Tensor:
    """Mixtures of embeddings on the sphere: y (S, D), weights (M, S) -> (M, D), dtype of y.

    The direction is the weighted spherical average (Buss & Fillmore 2001, section 3: the point q
    with sum w_i log_q(y_i) = 0, found by moving q along that sum). For two embeddings it is
    spherical interpolation (Shoemake 1985), with which unCLIP (Ramesh 2022, section 3.2) mixes CLIP
    embeddings. With negative weights, for which there may be no average, it is that of the weighted
    sum, the arithmetic of word vectors (Mikolov 2013). The length is the average of the lengths.
    Weights count relative to their sum.
    Raises ValueError if the weights do not sum to more than zero, or the embeddings cancel out.
    """
    total = weights.double().sum(dim=1, keepdim=True)
    if not (torch.isfinite(weights).all() and (total > 1e-9).all()):
        raise ValueError("weights should be numbers that sum to more than zero")
    w = weights.double() / total
    length = y.double().norm(dim=1)
    points = y.double() / length[:, None].clamp(min=1e-12)
    summed = w @ points  # (M, D)
    if (summed.norm(dim=1) < 1e-6).any():
        raise ValueError("these embeddings cancel out; there is nothing in between")
    summed = F.normalize(summed, dim=1)
    averaged = _spherical_average(summed, points, w.clamp(min=0))
    direction = torch.where((w < 0).any(dim=1, keepdim=True), summed, averaged)
    shares = w.abs() / w.abs().sum(dim=1, keepdim=True)
    return (direction * (shares @ length)[:, None]).to(y.dtype)


def _spherical_average(q: Tensor, points: Tensor, w: Tensor) -> Tensor:
    """From a first guess q (M, D) to the averages (M, D) of points (S, D), w (M, S) >= 0."""
    for _ in range(STEPS):
        step = (w[:, :, None] * _log(q, points)).sum(dim=1)  # (M, D), at right angles to q
        size = step.norm(dim=1, keepdim=True)
        q = F.normalize(q * size.cos() + step * torch.sinc(size / torch.pi), dim=1)
        if size.max() < CLOSE_ENOUGH:
            break
    return q


def _log(q: Tensor, points: Tensor) -> Tensor:
    """The tangent at q (M, D) that leads to each point (S, D), as long as the angle: (M, S, D)."""
    cosine = q @ points.T  # (M, S)
    away = points[None] - cosine[:, :, None] * q[:, None]
    sine = away.norm(dim=2)
    return away * (torch.atan2(sine, cosine) / sine.clamp(min=1e-12))[:, :, None]
