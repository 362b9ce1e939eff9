"""Plots of metrics, and the style of all plots.

The functions import matplotlib themselves: it takes long to import, and few trainings plot.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from utils.base.files import write_whole
from utils.evaluation.metric_names import distance_of, end_key, key_of, metric_info, network_name
from utils.evaluation.results import Record, comparable, curves

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def style_axis(axis: Axes, title: str, hint: str = "") -> None:
    """Give an axis the style of the project: title left, hint right, a light grid, no box."""
    axis.set_title(title, fontsize=12, loc="left")
    axis.set_title(hint, fontsize=9, loc="right", color="0.45")
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)


def save_plot(figure: Figure, path: Path) -> None:
    """Write a PNG, whole or not at all."""
    write_whole(path, lambda temporary: figure.savefig(temporary, dpi=150, format="png"))


def plot_metric(axis: Axes, lines: Mapping[str, Mapping[int, Record]], key: str) -> None:
    """Plot one metric against the training step, with its interval where it has one.

    `lines`: name -> step -> record. Raises KeyError if `key` is no metric.
    """
    about = metric_info(key)
    if about is None:
        raise KeyError(key)
    for label, line in lines.items():
        values, low, high = (
            np.array([record.get(name) for record in line.values()], float)  # None is nan
            for name in (key, end_key(key, "low"), end_key(key, "high"))
        )
        axis.plot(list(line), values, marker="o", markersize=4, linewidth=1.8, label=label)
        axis.fill_between(list(line), low, high, alpha=0.1, linewidth=0)
    style_axis(axis, about.label, f"{about.better} is better")
    axis.set_xlabel("training step")
    axis.margins(x=0.04)
    records = [record for line in lines.values() for record in line.values()]
    found = [record[key] for record in records if record.get(key) is not None]
    if about.better == "lower" and found and max(found) > 20 * min(found) > 0:
        axis.set_yscale("log")


def plot_curves(records: Sequence[Record], path: Path) -> None:
    """Write a PNG of Fréchet distance and CLIP score against the training step.

    Records that cannot be compared with the latest one are left out.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.2), layout="constrained")
    axes, network = figure.subplots(1, 2), records[-1]["network"]
    for axis, key in zip(axes, (key_of("frechet_distance", network), "clip_score"), strict=True):
        plot_metric(axis, curves(comparable(records)), key)
    axes[0].set_title(f"Fréchet distance ({network_name(network)})", loc="left")
    labels = axes[0].get_legend_handles_labels()
    columns = min(len(labels[1]), 3)
    figure.legend(*labels, loc="outside lower center", ncols=columns, frameon=False, fontsize=9)
    save_plot(figure, path)


def plot_trade_off(axis: Axes, records: Sequence[Record]) -> None:
    """Plot Fréchet distance against CLIP score, with a line for each step and sampler.

    A line joins the guidance scales, and each point shows its scale.
    """
    from matplotlib import colormaps

    steps = sorted({record["step"] for record in records})
    colours = colormaps["viridis"](np.linspace(0.05, 0.8, len(steps)))
    for step, colour in zip(steps, colours, strict=True):
        of_step = [record for record in records if record["step"] == step]
        samplers = dict.fromkeys((record["num_steps"], record["solver"]) for record in of_step)
        for number, sampler in enumerate(samplers):
            line = [r for r in of_step if (r["num_steps"], r["solver"]) == sampler]
            line.sort(key=lambda record: record["cfg_scale"] or 0)  # None is the weakest
            label = f"step {step:,}"
            if len(samplers) > 1:
                label += f", {sampler[0]} {sampler[1]} steps"
            x, y = [record["clip_score"] for record in line], [distance_of(r) for r in line]
            style = ("-", "--", ":", "-.")[number % 4]
            axis.plot(x, y, style, color=colour, marker="o", markersize=6, lw=1.8, label=label)
            _write_scales(axis, line)
    style_axis(axis, "Fréchet distance against CLIP score", "best is bottom right")
    axis.set_xlabel("CLIP score: how well images show their captions")
    axis.set_ylabel("Fréchet distance")
    axis.margins(0.08, 0.14)
    axis.legend(frameon=False, fontsize=9)


def _write_scales(axis: Axes, line: Sequence[Record]) -> None:
    """Write the guidance scale beside each point of a line in plot_trade_off."""
    last = len(line) - 1
    for i, record in enumerate(line):
        text = "none" if record["cfg_scale"] is None else f"{record['cfg_scale']:g}"
        # Scales often lie close together: the weakest left, the strongest right.
        shift, align = {0: ((-9, 0), "right"), last: ((9, 0), "left")}.get(i, ((0, -13), "center"))
        axis.annotate(
            text,
            (record["clip_score"], distance_of(record)),
            shift,
            textcoords="offset points",
            ha=align,
            va="center",
            fontsize=9,
            color="0.3",
        )
