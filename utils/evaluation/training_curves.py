"""A training's own metrics over those of reference runs, as fractions of each training."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from utils.base.errors import refusing
from utils.base.files import read_json_lines
from utils.evaluation.plots import save_plot, style_axis

REFERENCES = Path(__file__).resolve().parents[2] / "docs" / "runs"
# Title, hint, and metrics of metrics.jsonl, of which the first that a run has is plotted.
PANELS = (
    ("Training loss", "lower is better", ("loss",)),
    ("Held-out loss", "lower is better", ("val_loss", "seen_loss")),
    ("Held-out loss of the average", "lower is better", ("val_loss_ema", "seen_loss_ema")),
    ("The condition lowers the loss by", "above 0", ("cond_gain",)),
    ("Size of an update", "usually below 0.02", ("update_ratio",)),
    ("Weights minus average", "falls with the rate", ("ema_distance",)),
)


class Curve(NamedTuple):
    """The metrics of a run against the fraction of it that was done."""

    name: str
    progress: np.ndarray  # (N,) 0 to 1
    metrics: Mapping[str, np.ndarray]  # (N,) each; nan where a step has none


def own_curve(folder: Path, last_step: int | None = None) -> Curve | None:
    """Read the metrics of a training's folder; None if there are none.

    last_step: of the whole training; None = the last one that was done.
    Raises UserError if they are not those of a training.
    """
    file = folder / "metrics.jsonl"
    with refusing(f"{file}: is not of a training, whose lines hold numbers"):
        lines = {int(line["step"]): line for line in read_json_lines(file)}
        if not lines:
            return None
        return _curve(folder.resolve().name, [lines[step] for step in sorted(lines)], last_step)


def reference_curves() -> list[Curve]:
    """Read the reference runs of docs/runs; [] where the program has no docs."""
    runs = [json.loads(path.read_text("utf-8")) for path in sorted(REFERENCES.glob("*.json"))]
    return [_curve(f"{r['name']}, {r['steps']} steps", r["metrics"], None) for r in runs]


def _curve(name: str, lines: Sequence[Mapping[str, Any]], last_step: int | None) -> Curve:
    steps = np.array([line["step"] for line in lines], float)
    keys = {key for *_, keys in PANELS for key in keys}
    metrics = {key: np.array([line.get(key) for line in lines], float) for key in keys}
    return Curve(name, steps / (last_step or steps[-1]), metrics)


def plot_training(axis: Axes, panel: int, own: Curve, references: Sequence[Curve]) -> None:
    """Plot the panel of this number: one's own run in black, reference runs in colour below it."""
    title, hint, keys = PANELS[panel]
    for number, curve in enumerate([*references, own]):
        values = next((v for key in keys if not np.isnan(v := curve.metrics[key]).all()), None)
        if values is None:
            continue
        there, is_own = ~np.isnan(values), curve is own
        style: dict[str, Any] = (
            {"color": "black", "lw": 2.2} if is_own else {"color": f"C{number}", "lw": 1.3}
        )
        style |= {"marker": "o", "markersize": 3} if there.sum() < 40 else {}
        axis.plot(curve.progress[there], values[there], label=curve.name, **style)
    style_axis(axis, title, hint)
    axis.set_xlabel("fraction of the training")
    axis.set_xlim(0, 1.02)


def training_figure(own: Curve, references: Sequence[Curve]) -> Figure:
    """Return all panels with one legend."""
    figure = Figure(figsize=(12.6, 6.4), layout="constrained")
    handles: dict[str, Any] = {}
    for panel, axis in enumerate(figure.subplots(2, 3).flat):
        plot_training(axis, panel, own, references)
        lines, labels = axis.get_legend_handles_labels()
        handles |= dict(zip(labels, lines, strict=True))
    figure.legend(
        handles.values(), handles, loc="outside lower center", ncols=4, frameon=False, fontsize=9
    )
    return figure


def save_training_curves(folder: Path, path: Path, last_step: int | None = None) -> bool:
    """Write the figure of a training's folder as a PNG; return False if it has no metrics."""
    own = own_curve(folder, last_step)
    if own is not None:
        save_plot(training_figure(own, reference_curves()), path)
    return own is not None
