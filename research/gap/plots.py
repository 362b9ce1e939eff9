"""Plots of distributions."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes

MOST_BINS = 120


def plot_histograms(axis: Axes, values: Mapping[str, np.ndarray], digits: int) -> None:
    """Plot a histogram of (N,) values for each label, one below the other, on one x axis.

    Each histogram is as high as its row. Below it a line marks the 5 to 95 % points and a dot the
    median, which is written with `digits` decimals.
    """
    for row, (label, numbers) in enumerate(values.items()):
        base, color = -float(row), f"C{row}"
        rounded = numbers.astype(float).round(6)  # equal numbers get one bin
        bins = min(len(np.histogram_bin_edges(rounded, "fd")), MOST_BINS)  # Freedman & Diaconis
        counts, edges = np.histogram(rounded, bins)
        shape = base + 0.72 * counts / counts.max()
        axis.stairs(shape, edges, baseline=base, color=color, fill=True, alpha=0.25, label=label)
        axis.stairs(shape, edges, baseline=base, color=color, linewidth=1.2)
        p5, p50, p95 = np.percentile(numbers, (5, 50, 95))
        axis.plot([p5, p95], [base - 0.08] * 2, color=color, linewidth=2.5, solid_capstyle="butt")
        axis.plot([p50], [base - 0.08], color=color, marker="o", markersize=5)
        axis.annotate(
            f"{p50:.{digits}f}", (p50, base - 0.1), (0, -5), textcoords="offset points",
            ha="center", va="top", fontsize=8, color="0.35",
        )  # fmt: skip
    axis.set_yticks([0.2 - row for row in range(len(values))], list(values))
    axis.tick_params(axis="y", length=0)
    axis.set_ylim(-len(values) + 0.55, 0.85)


def plot_fractions_above(axis: Axes, values: Mapping[str, np.ndarray]) -> None:
    """Plot a curve for each label: the fraction of its (N,) values above x, in percent."""
    for label, numbers in values.items():
        ordered = np.sort(numbers)
        above = 100 * (1 - np.arange(1, len(ordered) + 1) / len(ordered))
        axis.plot(ordered, above, linewidth=1.8, label=label)
    axis.set_ylim(0, 100)
