"""Plot the trade between variety and attention to the sentence, with a curve for each method.

    python research/variety/plot.py results/variety/points.json --out trade.png

Reads the figures that research/variety/check.py wrote. A curve joins the strengths of one method,
and each point shows its strength. Several figures of one method and strength, for example of three
seeds, become one point: their mean, with bars from the least to the greatest.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

# First: from here on, Ctrl-C ends the script with one line.
from utils.base.errors import UserError
from utils.base.script import one_line_errors

# isort: split
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from utils.config.command_line import HelpFormatter
from utils.evaluation.plots import save_plot, style_axis

Point = dict[str, Any]

# Figure of a point → title of its panel, and the better direction.
PANELS = {
    "stated": ("Short sentences: stated attributes shown, %", "higher"),
    "attributes": ("Full captions: stated attributes shown, %", "higher"),
    "frechet_distance": ("Full captions: Fréchet distance", "lower"),
}


def read_points(path: Path) -> list[Point]:
    """Read the points of a JSON list; raise UserError if a figure of one is missing."""
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        return [
            {
                "method": str(row["method"]),
                "strength": float(row["strength"]),
                "ratio": float(row["ratio"]),
                "stated": float(row["stated"]),
                **{key: (row["captions"] or {}).get(key) for key in list(PANELS)[1:]},
            }
            for row in rows
        ]
    except (OSError, ValueError, KeyError, TypeError) as fault:
        raise UserError(f"{path}: not a list of research/variety/check.py ({fault!r})") from fault


def means(points: Sequence[Point], key: str) -> dict[str, np.ndarray]:
    """Return the curve of each method: (K, 5) with strength, ratio, figure, its least and greatest.

    A row is one strength; points without the figure `key` are left out.
    """
    found: dict[str, dict[float, list[tuple[float, float]]]] = {}
    for point in points:
        if point[key] is not None:
            strengths = found.setdefault(point["method"], {})
            strengths.setdefault(point["strength"], []).append((point["ratio"], point[key]))
    return {
        method: np.array(
            [
                [
                    strength,
                    *np.mean(pairs, axis=0),
                    np.min(pairs, axis=0)[1],
                    np.max(pairs, axis=0)[1],
                ]
                for strength, pairs in sorted(strengths.items())
            ]
        )
        for method, strengths in found.items()
    }


def plot_panel(axis: Axes, points: Sequence[Point], key: str) -> None:
    """Plot one figure against the variety, with a curve for each method."""
    title, better = PANELS[key]
    for number, (method, rows) in enumerate(means(points, key).items()):
        strength, ratio, value, low, high = rows.T
        marker = "os^"[number // 10 % 3]  # colours come again after ten methods
        bars = [value - low, high - value]
        line, *_ = axis.errorbar(ratio, value, bars, marker=marker, ms=4, capsize=2, label=method)
        look = {"textcoords": "offset points", "fontsize": 8, "color": line.get_color()}
        for name, x, y in zip(strength, ratio, value, strict=True):
            if len(rows) > 1:
                axis.annotate(f"{name:g}", (x, y), (4, 4), **look)
    axis.axvline(1, color="0.6", linestyle="--", linewidth=1)
    style_axis(axis, title, f"{better} is better")
    axis.set_xlabel("variety of what is left open, 1 = as varied as the data")


def plot_trade(points: Sequence[Point], path: Path) -> None:
    """Write a PNG with a panel for each figure that the points have; see `read_points`."""
    keys = [key for key in PANELS if any(point[key] is not None for point in points)]
    figure = Figure(figsize=(5.4 * len(keys), 4.6), layout="constrained")
    panels = figure.subplots(1, len(keys), squeeze=False)[0]
    for axis, key in zip(panels, keys, strict=True):
        plot_panel(axis, points, key)
    labels = panels[0].get_legend_handles_labels()
    figure.legend(*labels, loc="outside lower center", ncols=6, frameon=False, fontsize=9)
    save_plot(figure, path)


@one_line_errors
def main() -> None:
    """Read the points and write the plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("points", type=Path, help="JSON file of research/variety/check.py")
    parser.add_argument("--out", type=Path, default=Path("trade.png"), help="PNG to write")
    args = parser.parse_args()
    points = read_points(args.points)
    if not points:
        raise UserError(f"{args.points}: holds no points")
    plot_trade(points, args.out)
    print(f"plot: {args.out}")


if __name__ == "__main__":
    main()
