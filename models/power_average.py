"""Averages of weights by a power of the time, and any width from two of them (Karras 2024).

An average of exponent g weights the moment s of a training by s^g (arXiv 2312.02696, equation 1).
Its width is the standard deviation of that weighting, relative to the length of the training. The
weightings are smooth, so averages of two widths at several moments give those of other widths by
least squares, after the training (section 3.2).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import numpy as np

WIDEST = 12**-0.5  # of exponent 0, an equal weight for all steps


class Snapshot(NamedTuple):
    """An average at one moment: its width, and the number of steps that it has averaged."""

    width: float
    steps: int


@cache
def exponent(width: float) -> float:
    """Return the exponent of a width above 0 and below WIDEST (Karras 2024, algorithm 2)."""
    inverse = width**-2.0
    return float(np.roots([1.0, 7.0, 16.0 - inverse, 12.0 - inverse]).real.max())


def power_decay(steps: int, width: float) -> float:
    """Return the decay of the update after step `steps`, from 1 on (Karras 2024, equation 127).

    It is exact if weights count as constant between two steps. At step 1 it is 0.
    """
    return float((1.0 - 1.0 / steps) ** (exponent(width) + 1.0))


def reconstruction(snapshots: Sequence[Snapshot], wanted: Snapshot) -> tuple[list[float], float]:
    """Return the factor of each snapshot, whose sum is near the wanted average, and the error.

    Minimises the squared difference of the weightings (Karras 2024, algorithm 3), among factors
    with the sum 1, so that weights which never moved stay: networks of the paper have weights of
    a fixed length, which need no such bound. The error is the root of the minimum, relative to the
    wanted weighting: 0 = exact.
    """
    steps = np.array([*(s.steps for s in snapshots), wanted.steps]) / wanted.steps
    powers = np.array([exponent(s.width) for s in (*snapshots, wanted)])
    products = _products(steps, powers)
    norms = np.sqrt(np.diag(products))
    cosines = products / np.outer(norms, norms)
    gram, right = cosines[:-1, :-1], cosines[:-1, -1]
    sums = norms[-1] / norms[:-1]  # of a factor, by that of its normalised weighting
    system = np.block([[gram, sums[:, None]], [sums[None, :], np.zeros((1, 1))]])
    # Neighbouring snapshots are nearly alike: directions that rounding alone fills are left out.
    found = np.linalg.lstsq(system, np.append(right, 1.0), rcond=1e-10)[0][:-1]
    error = np.sqrt(max(1.0 - 2.0 * found @ right + found @ gram @ found, 0.0))
    return (found * sums).tolist(), float(error)


def _products(steps: np.ndarray, powers: np.ndarray) -> np.ndarray:
    """Return the integrals of the products of weightings: (N,), (N,) -> (N, N); equation 151."""
    t, other = steps[:, None], steps[None, :]
    g, h = powers[:, None], powers[None, :]
    low = np.minimum(t, other)
    ends = (low / t) ** g * (low / other) ** h * low / (t * other)
    return np.asarray((g + 1) * (h + 1) / (g + h + 1) * ends)
