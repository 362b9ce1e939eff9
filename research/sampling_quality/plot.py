"""The plot of research/sampling_quality/compare.py."""

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def plot(rows: list[dict[str, Any]], band: tuple[float, float], path: Path, title: str) -> None:
    """Plot Fréchet distance and attributes shown against the cost of an image.

    rows: the reference comes first. band: 95 % interval of its distance.
    """
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    keys = ("Fréchet distance", "attributes shown, %")
    for axis, key in zip(axes, keys, strict=True):
        for curve in dict.fromkeys(row["curve"] for row in rows if row["curve"]):
            points = sorted((r["cost"], r[key]) for r in rows if r["curve"] == curve)
            label, style = curve.replace("`", ""), "*" if "fast" in curve else "o-"
            size = 11 if "fast" in curve else 4
            axis.plot(*zip(*points, strict=True), style, markersize=size, label=label)
        axis.set_xscale("log")
        ticks = [1, 2, 4, 10, 20, 40, 80, 160]
        axis.set_xticks(ticks, [str(tick) for tick in ticks])
        axis.minorticks_off()
        axis.set_xlabel("network evaluations of an image, guidance counted double")
        axis.set_ylabel(key)
        axis.grid(alpha=0.3)
    # Settings that fail are cut off, so that the differences among the others can be seen.
    reference = rows[0]
    axes[0].set_ylim(0.5 * reference[keys[0]], 2.5 * reference[keys[0]])
    axes[1].set_ylim(reference[keys[1]] - 14, reference[keys[1]] + 4)
    axes[0].axhspan(*band, color="gray", alpha=0.2, label=f"{reference['setting']}, 95 %")
    axes[0].legend(fontsize=8)
    figure.suptitle(title, fontsize=9)
    figure.savefig(path, dpi=110)
    plt.close(figure)
