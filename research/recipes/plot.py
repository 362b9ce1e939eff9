"""The plot of recipes: metrics against time, and the distance at the end with its interval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

from research.recipes.results import Results, Standing
from research.recipes.table import TARGETS
from utils.evaluation.plots import save_plot, style_axis

COLOURED = 8  # best recipes, and those of TARGETS; the lines of all others are grey


def draw(results: Results, path: Path) -> None:
    """Draw distance and attributes against time, and the distance at the end, into a PNG.

    Recipes without a finished run are left out; nothing is drawn if there are no others.
    """
    standings = [standing for standing in results.standings() if standing.finished]
    if not standings:
        return
    height = max(4.2, 1.2 + 0.32 * len(standings))
    figure = Figure(figsize=(16, height), layout="constrained")
    distance, attributes, end = figure.subplots(1, 3)
    colours = _colours(standings)
    _curves(distance, standings, "frechet_distance", colours)
    _curves(attributes, standings, "attributes", colours)
    style_axis(distance, "Fréchet distance", "lower is better")
    distance.set_yscale("log")
    _plain_numbers(distance.yaxis)
    style_axis(attributes, "stated attributes that are shown, %", "higher is better")
    for axis in (distance, attributes):
        axis.set_xlabel(f"{results.setup['unit']} of training")
        axis.set_xlim(left=0)
    _ends(end, standings, colours)
    save_plot(figure, path)


def _colours(standings: Sequence[Standing]) -> dict[str, Any]:
    """Return label -> colour."""
    cycle = matplotlib.color_sequences["tab10"]
    chosen = [
        s.label
        for place, s in enumerate(standings)
        if place < COLOURED or s.runs[0]["recipe"] in TARGETS
    ]
    return {label: cycle[i % len(cycle)] for i, label in enumerate(chosen)}


def _curves(
    axis: Axes, standings: Sequence[Standing], key: str, colours: Mapping[str, Any]
) -> None:
    """Draw a line for the curve of each recipe."""
    for standing in reversed(standings):  # the best one lies on top
        x, y = ([point[name] for point in standing.curve] for name in ("seconds", key))
        colour = colours.get(standing.label, "0.8")
        axis.plot(x, y, marker="o", markersize=4, linewidth=1.8, color=colour)


def _ends(axis: Axes, standings: Sequence[Standing], colours: Mapping[str, Any]) -> None:
    """Draw a row for each recipe: interval over pictures, mean, and a ring for each seed."""
    for row, standing in enumerate(standings):
        colour, values = colours.get(standing.label, "0.6"), standing.ends("frechet_distance")
        low, high = (standing.mean(f"frechet_distance_{end}") for end in ("low", "high"))
        axis.plot(np.array([low, high], float), [row, row], color=colour, linewidth=2.5)
        axis.plot(values, [row] * len(values), "o", color=colour, fillstyle="none", markersize=5)
        axis.plot(sum(values) / len(values), row, "D", color=colour, markersize=6)
    names = [s.label + (" (dropped)" if s.dropped else "") for s in standings]
    axis.set_yticks(range(len(names)), names)
    axis.invert_yaxis()
    axis.set_xscale("log")
    _plain_numbers(axis.xaxis)
    style_axis(axis, "Distance at the end", "line: 95 %, pictures; rings: seeds")


def _plain_numbers(axis: Axis) -> None:
    """Label a logarithmic axis with plain numbers, e.g. 150, at a few places of each decade."""
    axis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
