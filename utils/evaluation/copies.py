"""Distances of images to their nearest training images, and the test that calls them copies.

An image is compared with all training images, also mirrored. Its *contrast* is the distance to the
nearest one divided by the mean distance to the next ones (Carlini et al. 2023, section 4.2, divide
so too): a copy is far nearer to one training image than to all others, while a blurred or usual
image is as near to many. The contrasts of held-out images say how low it falls by chance.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from utils.evaluation.frechet import CONFIDENCE, RESAMPLES
from utils.evaluation.metric_names import METRICS, copies_found

SIDE = 32  # pixels of a thumbnail
SHIFT = 2  # largest shift that is tried, pixels of a thumbnail
NEIGHBOURS = 16  # training images that are compared closely: the nearest, and those after it
TAIL = 0.01  # fraction of held-out images that count as copies, by definition
ROWS = 64  # images searched at a time
LUMINANCE = (0.299, 0.587, 0.114)  # ITU-R BT.601


class Matches(NamedTuple):
    """The nearest training image of each of N images."""

    nearest: Tensor  # (N,) int64, index of the training image
    distance: Tensor  # (N,)
    contrast: Tensor  # (N,), 0 = equal to one training image
    mirrored: Tensor | None = None  # (N,) bool: is the mirrored image nearer? None = unknown


def thumbnails(images: Tensor) -> Tensor:
    """Shrink (N, 3, H, W) uint8 to (N, 3, SIDE, SIDE) uint8, each pixel the mean of its area."""
    return F.adaptive_avg_pool2d(images.float(), SIDE).round().byte()


class PixelSearch:
    """Training images in which the nearest ones are searched by their pixels.

    The distance is the root mean square difference of pixels, in units of the luminance's deviation
    in the image: brightness and contrast do not count. All training images are compared at half of
    the thumbnails' size; the nearest of these, and some that are given, at all shifts up to SHIFT.
    """

    def __init__(self, training: Tensor) -> None:
        """`training`: thumbnails (M, 3, SIDE, SIDE) uint8."""
        self.training = training
        self.coarse = torch.cat([_coarse(_standardised(part)) for part in training.split(4096)])

    def nearest(self, images: Tensor, candidates: Tensor | None = None) -> Matches:
        """Find the nearest training image of thumbnails (N, 3, SIDE, SIDE) uint8.

        `candidates`: (N, C) int64 training images to compare closely as well; −1 = none.
        """
        if candidates is None:
            candidates = torch.full((len(images), 1), -1)
        parts = zip(images.split(ROWS), candidates.split(ROWS), strict=True)
        found = [self._nearest(*part) for part in parts]
        return Matches(*(torch.cat(column) for column in zip(*found, strict=True)))

    def _nearest(self, images: Tensor, candidates: Tensor) -> tuple[Tensor, ...]:
        plain = _standardised(images)
        both = torch.stack([plain, plain.flip(3)])  # (2, N, 3, S, S)
        coarse = torch.stack([torch.cdist(_coarse(side), self.coarse) for side in both])
        nearest = coarse.amin(dim=0).topk(min(NEIGHBOURS, len(self.coarse)), largest=False).indices
        ids = torch.cat([nearest, candidates], dim=1)  # (N, K)
        distances = self._aligned(both, self.training[ids.clamp(min=0)])  # (2, N, K)
        again = (ids[:, :, None] == ids[:, None, :]).tril(-1).any(dim=2) | (ids < 0)
        distance, order = distances.amin(dim=0).masked_fill(again, torch.inf).sort(dim=1)
        first = order[:, :1]
        straight, turned = (side.gather(1, first)[:, 0] for side in distances)
        index = ids.gather(1, first)[:, 0]
        return index, distance[:, 0], _contrast(distance), turned < straight

    def _aligned(self, both: Tensor, others: Tensor) -> Tensor:
        """Return the distances at the best shift of images (2, N, 3, S, S) and (N, K, 3, S, S).

        The inner part of an image is compared with each window of the others, |a|² + |b|² − 2ab.
        """
        count, size = others.shape[1], SIDE - 2 * SHIFT
        others = _standardised(others.flatten(0, 1))
        squares = size**2 * F.avg_pool2d(others.square().sum(dim=1, keepdim=True), size, stride=1)
        inner = both[..., SHIFT : SIDE - SHIFT, SHIFT : SIDE - SHIFT]
        own = inner.square().sum(dim=(2, 3, 4))  # (2, N)
        shifts = [(top, left) for top in range(2 * SHIFT + 1) for left in range(2 * SHIFT + 1)]
        moved = both.new_zeros(len(shifts), *both.shape)  # the inner part in each place, 0 around
        for place, (top, left) in zip(moved, shifts, strict=True):
            place[..., top : top + size, left : left + size] = inner
        moved = moved.flatten(3).permute(2, 3, 0, 1).flatten(2)  # (N, D, shifts · 2)
        products = (others.flatten(1).unflatten(0, (-1, count)) @ moved).unflatten(2, (-1, 2))
        square = squares.flatten(1).unflatten(0, (-1, count))[..., None] - 2 * products
        best = square.amin(dim=2).permute(2, 0, 1) + own[..., None]  # (2, N, K)
        return (best.clamp(min=0) / inner[0, 0].numel()).sqrt()


def _standardised(images: Tensor) -> Tensor:
    """Shift and scale (N, 3, H, W) so that the luminance has mean 0 and deviation 1."""
    images = images.float()
    luminance = torch.einsum("nchw,c->nhw", images, torch.tensor(LUMINANCE)).flatten(1)
    mean, scale = luminance.mean(dim=1), luminance.std(dim=1).clamp(min=1)
    return (images - mean[:, None, None, None]) / scale[:, None, None, None]


def _coarse(images: Tensor) -> Tensor:
    """Halve (N, 3, S, S) to vectors (N, D)."""
    return F.avg_pool2d(images, 2).flatten(1)


def _contrast(distances: Tensor) -> Tensor:
    """Return the contrast (N,) of sorted distances (N, K); infinite ones do not count."""
    others = distances[:, 1:NEIGHBOURS]
    there = others.isfinite()
    mean = others.where(there, 0.0).sum(dim=1) / there.sum(dim=1).clamp(min=1)
    return distances[:, 0] / mean.clamp(min=1e-6)


def nearest_embeddings(indices: Tensor, cosines: Tensor) -> Matches:
    """Return the matches of embeddings from their nearest training images.

    indices, cosines: (N, K), the nearest first, as `neighbours.nearest` finds them. The distance is
    1 − cosine. Mirrored images are not embedded: that costs as much again, and pixels find them.
    """
    distances = (1 - cosines).clamp(min=0)
    return Matches(indices[:, 0], distances[:, 0], _contrast(distances))


@dataclass(frozen=True)
class CopyTest:
    """Generated images beside held-out ones, by their matches among the same training images."""

    generated: Matches
    held_out: Matches

    @cached_property
    def limit(self) -> float:
        """The contrast below which an image counts as a copy: a low one of held-out images."""
        return float(self.held_out.contrast.sort().values[self._rank - 1])

    @property
    def _rank(self) -> int:
        return max(1, round(TAIL * len(self.held_out.contrast)))

    @property
    def is_copy(self) -> Tensor:
        """True for each generated image that counts as a copy, (N,)."""
        return self.generated.contrast < self.limit

    @property
    def p_value(self) -> float:
        """Return the probability of so many copies or more, if both sets were alike.

        The number of images below the r-th lowest of H others then has a beta-binomial
        distribution, whatever the distribution of the contrasts (Wilks 1942).
        """
        from scipy.stats import betabinom

        count, held_out, rank = int(self.is_copy.sum()), len(self.held_out.contrast), self._rank
        return float(
            betabinom.sf(count - 1, len(self.generated.contrast), rank, held_out + 1 - rank)
        )

    def metrics(self) -> dict[str, Any]:
        """Return the fraction of copies with its interval, and the distance to training images.

        `copies` with `copies_low` and `copies_high` (Wilson, 95 %), `copies_p` (the p-value),
        `copies_mirrored` (fraction of mirrored copies, by pixels); `training_distance`, the median
        distance to the nearest training image divided by that of held-out images, with the ends of
        its bootstrap interval (95 %).
        """
        from scipy.stats import binomtest

        count, n = int(self.is_copy.sum()), len(self.generated.contrast)
        interval = binomtest(count, n).proportion_ci(method="wilson")
        ratio, low, high = _ratio(self.generated.distance.numpy(), self.held_out.distance.numpy())
        mirrored = self.generated.mirrored
        of_mirrored = {}
        if mirrored is not None:
            of_mirrored["copies_mirrored"] = int((self.is_copy & mirrored).sum()) / n
        return {
            "copies": count / n,
            "copies_low": float(interval.low),
            "copies_high": float(interval.high),
            "copies_p": self.p_value,
            **of_mirrored,
            "training_distance": ratio,
            "training_distance_low": low,
            "training_distance_high": high,
        }


def _ratio(ours: np.ndarray, theirs: np.ndarray) -> tuple[float, float, float]:
    """Return the ratio of two medians, and the ends of its bootstrap interval."""
    generator = np.random.default_rng(0)

    def medians(values: np.ndarray) -> np.ndarray:
        rows = generator.integers(len(values), size=(RESAMPLES, len(values)))
        return np.asarray(np.median(values[rows], axis=1))

    least = 1e-6  # of a set that equals the training images
    ratios = medians(ours) / np.maximum(medians(theirs), least)
    low, high = np.quantile(ratios, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(np.median(ours) / max(np.median(theirs), least)), float(low), float(high)


def verdict(metrics: Mapping[str, Any]) -> str:
    """Say in plain words what the metrics of `CopyCheck` mean."""
    by_pixels = metrics.get("copies") is not None
    kind, number = "" if by_pixels else "_clip", metrics["copies_n"]
    show = METRICS["copies"].show
    copies, low, high = (metrics[f"copies{end}{kind}"] for end in ("", "_low", "_high"))
    if found := copies_found(metrics):
        mirrored = round(metrics.get(f"copies_mirrored{kind}", 0) * number)
        first = (
            f"{found[0].upper()}{found[1:]} ({show(copies)}, {show(low)} to {show(high)}"
            f"{f', {mirrored} mirrored' if mirrored else ''}): each is far nearer to one training "
            f"image than to the next ones, as only {TAIL:.0%} of held-out images are."
        )
    else:
        first = (
            f"No copies seen: {round(copies * number)} of {number:,} images are as much nearer to "
            f"one training image as {TAIL:.0%} of held-out images are by chance."
        )
    ratio, low, high = (metrics[f"training_distance{end}{kind}"] for end in ("", "_low", "_high"))
    words = "As near to the training images as"
    if high < 1 or low > 1:
        words = "Nearer to the training images than" if high < 1 else "Farther from them than"
    where = "by pixels" if by_pixels else "by CLIP embeddings alone"
    return (
        f"{first} {words} held-out images are: {ratio:.2f} of their distance ({low:.2f} to "
        f"{high:.2f}). Searched {where} among {metrics['copies_among']:,} training images, with "
        f"{metrics['copies_held_out']:,} held-out ones."
    )
