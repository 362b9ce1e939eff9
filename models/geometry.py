"""Geometry of the directions of CLIP embeddings: angles, the modality gap, mixtures.

All computations are in float64: float32's rounding is too coarse for small angles.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

MAX_STEPS = 200  # of the iteration; if all embeddings lie within a right angle, few are needed
CLOSE_ENOUGH = 1e-10  # radians


def angle_deg(a: Tensor, b: Tensor) -> Tensor:
    """Measure the angle between rows of a and b, (N, D) of any length -> (N,) float64, degrees.

    Uses the half-angle formula of Kahan 2006 ("How futile are mindless assessments of roundoff",
    section 12). Unlike the arc cosine, it is exact to rounding for small angles too.
    """
    a, b = F.normalize(a.double(), dim=1), F.normalize(b.double(), dim=1)
    return torch.rad2deg(2 * torch.atan2((a - b).norm(dim=1), (a + b).norm(dim=1)))


@dataclass(frozen=True)
class Gap:
    """Modality gap: cosines between embeddings (float64, in random order), and its length."""

    matching: Tensor  # (N,) an image and its own text
    other: Tensor  # (M,) an image and the text of another image
    images: Tensor  # (M,) two images
    texts: Tensor  # (M,) two texts of different images
    distance: float  # between the means of the normalised embeddings
    angle: Tensor  # (N,) degrees between an image and its own text


def modality_gap(images: Tensor, texts: Tensor, generator: torch.Generator, pairs: int = 10) -> Gap:
    """Measure the gap between paired embeddings, images (N, D) and texts (N, D), N >= 2.

    `distance` is the length of the gap vector of Liang 2022 ("Mind the gap", section 4.1). For each
    sample, `generator` chooses at most `pairs` pairs with other samples.
    Raises ValueError if there are fewer than two samples, or the numbers of rows differ.
    """
    if len(images) != len(texts) or len(images) < 2:
        raise ValueError(
            f"needs as many images as texts, two or more, not {len(images)}, {len(texts)}"
        )
    x, y = F.normalize(images.double(), dim=1), F.normalize(texts.double(), dim=1)
    # In random order, neighbours at a distance are random pairs; no sample is its own neighbour.
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
    """Move caption embeddings towards images: normalise(y/|y| + m), (N, D) -> (N, D).

    image_mean m: (D,), mean of the normalised image embeddings. They have one direction in common
    that captions lack (Liang 2022, "Mind the gap"). Zhang 2024 ("Connect, Collapse, Corrupt",
    section 4) closes the gap by both means; adding m is the half that needs no caption.
    """
    return F.normalize(F.normalize(y, dim=1) + image_mean, dim=1)


def scale_for_angle(angle: float) -> float:
    """Return the noise scale that perturbs embeddings by `angle` degrees: its tangent.

    In many dimensions a random direction is nearly at a right angle to the embedding. The embedding
    plus p times that direction therefore changes its angle by arctan(p).
    Raises ValueError if the angle is not from 0 to below 90 degrees.
    """
    if not 0 <= angle < 90:
        raise ValueError(f"no perturbation changes most embeddings by {angle:.1f} degrees")
    return float(torch.tensor(angle, dtype=torch.float64).deg2rad().tan())


def gaussian_for_angle(angle: float, fraction: float) -> float:
    """Return the scale s of N(0, s²) for which a fraction of the angles is above `angle` degrees.

    s solves P(|p| > tan(angle)) = fraction, with p ~ N(0, s²); see `scale_for_angle`.
    Raises ValueError if the fraction is not between 0 and 1, or the angle is wrong.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"fraction {fraction:g} should be between 0 and 1")
    quantile = torch.special.ndtri(torch.tensor(1 - fraction / 2, dtype=torch.float64))
    return scale_for_angle(angle) / float(quantile)


def mix(y: Tensor, weights: Tensor) -> Tensor:
    """Mix embeddings on the sphere: y (S, D), weights (M, S) -> (M, D), dtype of y.

    The direction is the weighted spherical average (Buss & Fillmore 2001, section 3): the point q
    with sum w_i log_q(y_i) = 0, found by moving q along that sum. For two embeddings it is
    spherical interpolation (Shoemake 1985); unCLIP mixes CLIP embeddings so (Ramesh 2022,
    section 3.2). Negative weights may have no spherical average: their direction is that of the
    weighted sum, the arithmetic of word vectors (Mikolov 2013).
    The length is the weighted average of the lengths. Weights count relative to their sum.
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
    fractions = w.abs() / w.abs().sum(dim=1, keepdim=True)
    lengths: Tensor = fractions @ length  # (M,)
    return (direction * lengths[:, None]).to(y.dtype)


def _spherical_average(q: Tensor, points: Tensor, w: Tensor) -> Tensor:
    """Return the averages (M, D) of points (S, D), w (M, S) >= 0, from a first guess q (M, D)."""
    for _ in range(MAX_STEPS):
        step = (w[:, :, None] * _log(q, points)).sum(dim=1)  # (M, D), at right angles to q
        size = step.norm(dim=1, keepdim=True)
        q = F.normalize(q * size.cos() + step * torch.sinc(size / torch.pi), dim=1)
        if size.max() < CLOSE_ENOUGH:
            break
    return q


def _log(q: Tensor, points: Tensor) -> Tensor:
    """Return the tangent at each q (M, D) towards each point (S, D): (M, S, D).

    Its length is the angle between them, in radians.
    """
    cosine = q @ points.T  # (M, S)
    offset = points[None] - cosine[:, :, None] * q[:, None]
    sine = offset.norm(dim=2)
    factor: Tensor = torch.atan2(sine, cosine) / sine.clamp(min=1e-12)
    return offset * factor[:, :, None]
