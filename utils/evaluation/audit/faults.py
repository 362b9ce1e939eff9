"""Images that harm a training: nearly constant, framed by bars, blurred, too small, or doubled."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

Fault = Literal["constant", "bars", "blurred", "tiny"]
FAULTS: dict[Fault, str] = {
    "constant": "nearly constant",
    "bars": "framed by bars",
    "blurred": "blurred or enlarged",
    "tiny": "smaller than half of the network's images",
}
FLAT = 4.0  # deviation of the levels of a nearly constant image, of 255
EVEN, EDGE = 12, 24  # spread of the levels in a bar, and step of them at its end
THIN, THICK = 0.02, 0.45  # of the side, the least and the most that counts as a bar
ALONG = 0.7  # fraction of a bar's length along which the image begins behind it
DULL = 0.2  # detail relative to the median image's, below which an image is blurred
ALIKE, CLOSE, CELLS = 0.9, 12.0, 16  # cosine, levels and grid of near-duplicates
PAIRS = 300  # most pairs of like embeddings that are compared by their pixels


def is_constant(images: Tensor) -> Tensor:
    """Find images uint8 (N, 3, H, W) that show nearly one colour: (N,) bool."""
    return images.float().std(dim=(2, 3)).amax(dim=1) < FLAT


def bar_widths(images: Tensor) -> Tensor:
    """Return the width of a bar of one colour at each edge of images, (N, 4) pixels.

    The edges are top, bottom, left, right. A bar ends along a straight line: a plain background,
    before which a head or shoulders stand, is none. 0 = there is no bar.
    """
    sides = (images, images.flip(2), images.mT, images.mT.flip(2))
    return torch.stack([_bar_at_top(side) for side in sides], dim=1)


def _bar_at_top(images: Tensor) -> Tensor:
    x = images.short()
    rows = x.amax(dim=3) - x.amin(dim=3)  # (N, 3, H)
    first = x[:, :, :1].float().mean(dim=3)  # (N, 3, 1), colour of the edge
    is_even = (rows <= EVEN).all(dim=1) & ((x.float().mean(dim=3) - first).abs() <= EVEN).all(dim=1)
    widths = is_even.long().cumprod(dim=1).sum(dim=1)  # (N,)
    height = x.shape[2]
    behind = (widths + 1).clamp(max=height - 1)  # one row may be mixed of both
    row = x.gather(2, behind.view(-1, 1, 1, 1).expand(-1, 3, 1, x.shape[3]))[:, :, 0]
    step = ((row - first).abs() >= EDGE).any(dim=1).float().mean(dim=1)
    is_bar = (widths >= max(2, THIN * height)) & (widths <= THICK * height) & (step >= ALONG)
    return widths * is_bar


def detail(images: Tensor) -> Tensor:
    """Return what images lose when they are halved and enlarged again, (N,), relative to contrast.

    Root mean square of the loss, divided by the deviation of the levels.
    """
    x = images.float().mean(dim=1, keepdim=True)
    side = [max(1, length // 2) for length in x.shape[2:]]
    low = F.interpolate(x, side, mode="bilinear", antialias=True, align_corners=False)
    back = F.interpolate(low, x.shape[2:], mode="bilinear", align_corners=False)
    contrast = x.std(dim=(1, 2, 3)).clamp(min=1.0)
    return (x - back).square().mean(dim=(1, 2, 3)).sqrt() / contrast


def find_faults(images: Tensor, sizes: Tensor) -> dict[Fault, list[int]]:
    """Return the indices of faulty images, each under its first fault.

    images: uint8 (N, 3, S, S) as the network sees them. sizes: (N, 2) of their files, pixels.
    """
    constant = is_constant(images)
    bars = (bar_widths(images) > 0).any(dim=1)
    sharpness = detail(images)
    usual = sharpness[~constant].median() if (~constant).any() else torch.tensor(0.0)
    tests: dict[Fault, Tensor] = {
        "constant": constant,
        "bars": bars,
        "tiny": sizes.amin(dim=1) < images.shape[-1] / 2,
        "blurred": sharpness < DULL * usual,
    }
    found: dict[Fault, list[int]] = {}
    free = torch.ones(len(images), dtype=torch.bool)
    for fault, has in tests.items():
        found[fault] = (has & free).nonzero()[:, 0].tolist()
        free &= ~has
    return found


class Pair(NamedTuple):
    """Two near-duplicates: their indices, if one is mirrored, and the cosine of the embeddings."""

    first: int
    second: int
    mirrored: bool
    cosine: float


def likely_pairs(images: Tensor, others: Tensor, rows: Tensor) -> list[tuple[int, int, float]]:
    """Return pairs of images and others with cosines of ALIKE or more, the highest first.

    images: (M, D) of unit length, which are `rows` (M,) of the others (N, D). A pair with itself
    does not count, and each pair comes once.
    """
    found: dict[tuple[int, int], float] = {}
    for part, places in zip(images.split(1000), rows.split(1000), strict=True):
        cosines = part @ others.T
        cosines[torch.arange(len(part)), places] = -1
        best = cosines.topk(min(3, cosines.shape[1]), dim=1)
        for i, values, where in zip(
            places.tolist(), best.values.tolist(), best.indices.tolist(), strict=True
        ):
            for value, j in zip(values, where, strict=True):
                if value >= ALIKE:
                    found[min(i, j), max(i, j)] = value
    ordered = sorted(found.items(), key=lambda item: -item[1])
    return [(i, j, value) for (i, j), value in ordered[:PAIRS]]


def looks_equal(first: Tensor, second: Tensor) -> bool:
    """Return True if two images uint8 (3, S, S) agree in every cell of a coarse grid.

    A face with other eyes or another shirt differs in a cell; one of another size, brightness
    below CLOSE levels or compression does not.
    """
    cells = F.adaptive_avg_pool2d(torch.stack([first, second]).float(), CELLS)
    return bool((cells[0] - cells[1]).abs().max() < CLOSE)
