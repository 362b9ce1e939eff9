"""The `evaluation/` folder of an experiment: results.jsonl, results.csv and curve.png."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from utils.base.errors import note
from utils.base.files import write_csv
from utils.base.text_table import aligned
from utils.evaluation.metric_names import METRICS, metric_info, network_name
from utils.evaluation.plots import save_plot, style_axis

Record = dict[str, Any]


class Results:
    """All evaluations of an experiment, one record each, in the order they were made.

    A record is what was evaluated (checkpoint and settings) together with the figures.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / "results.jsonl"
        self.records: list[Record] = []
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        for number, line in enumerate(lines, 1):
            try:
                self.records.append(dict(json.loads(line)))
            except ValueError:  # written when the disk was full or the power went
                note(f"{self.path}:{number}: not a whole record, passed over")

    def find(self, what: Mapping[str, Any]) -> Record | None:
        """The latest record made with exactly these settings."""
        wanted = json.loads(json.dumps(what))  # as the file would give it back
        for record in reversed(self.records):
            if all(key in record and record[key] == value for key, value in wanted.items()):
                return record
        return None

    def add(self, record: Record) -> None:
        """Append to results.jsonl and bring results.csv up to date."""
        self.folder.mkdir(parents=True, exist_ok=True)
        torn = self.path.exists() and not self.path.read_bytes().endswith(b"\n")
        with open(self.path, "a") as file:
            file.write(("\n" if torn else "") + json.dumps(record) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self.records.append(json.loads(json.dumps(record)))
        flat = [{k: v for k, v in r.items() if k != "config"} for r in self.records]
        write_csv(self.folder / "results.csv", flat)

    def plot(self) -> None:
        """Bring curve.png up to date."""
        plot_curve(comparable(self.records), self.folder / "curve.png")


def way_names(ways: Sequence[Mapping[str, Any]]) -> list[str]:
    """How images were sampled, for people: the guidance; steps, solver, number where they differ.

    Each of `ways` has the keys `cfg_scale`, `num_steps`, `solver` and maybe `n`, as records have.
    """
    steps_differ = len({(way["num_steps"], way["solver"]) for way in ways}) > 1
    counts_differ = len({way.get("n") for way in ways}) > 1
    names = []
    for way in ways:
        scale = way["cfg_scale"]
        name = "no guidance" if scale is None else f"guidance {scale:g}"
        name += f", {way['num_steps']} {way['solver']} steps" if steps_differ else ""
        names.append(name + (f", {way['n']} images" if counts_differ else ""))
    return names


def comparable(records: Sequence[Record]) -> list[Record]:
    """Those whose figures can be compared with the latest: same reference and feature network."""
    keys = ("network", "reference")
    return [r for r in records if all(r[key] == records[-1][key] for key in keys)]


def best_of(records: Sequence[Record]) -> Record:
    """The record with the lowest Frechet distance."""
    return min(records, key=lambda record: record["frechet_distance"])


def table(records: Sequence[Record]) -> str:
    """The figures as aligned text; the best checkpoint is starred."""
    header = ("step", "guidance", "steps", "solver", "Fréchet", "CLIP score", "images", "time", "")
    rows = [header]
    for record in records:
        rows.append(
            (
                str(record["step"]),
                "none" if record["cfg_scale"] is None else f"{record['cfg_scale']:g}",
                str(record["num_steps"]),
                record["solver"],
                *(METRICS[key].show(record[key]) for key in ("frechet_distance", "clip_score")),
                str(record["n"]),
                f"{record['seconds']:.0f} s",
                "*" if record is best_of(records) else "",
            )
        )
    return aligned(rows)


def curves(records: Sequence[Record]) -> dict[str, dict[int, Record]]:
    """Name of a way of sampling -> step -> its latest record, in order of the steps."""
    lines: dict[str, dict[int, Record]] = {}
    for name, record in zip(way_names(records), records, strict=True):
        lines.setdefault(name, {})[record["step"]] = record
    return {name: dict(sorted(line.items())) for name, line in lines.items()}


def draw_curves(axis: Axes, records: Sequence[Record], key: str) -> None:
    """One figure against the training step, a line per way of sampling."""
    for label, line in curves(records).items():
        values = np.array([record.get(key) for record in line.values()], float)  # None is nan
        axis.plot(list(line), values, marker="o", markersize=4, linewidth=1.8, label=label)
        ends = [[record.get(f"{key}_{end}") for record in line.values()] for end in ("low", "high")]
        axis.fill_between(list(line), *np.array(ends, float), alpha=0.1, linewidth=0)
    about = metric_info(key)
    style_axis(axis, about.label, f"{about.better} is better")
    axis.set_xlabel("training step")
    axis.margins(x=0.04)
    found = [record[key] for record in records if record.get(key) is not None]
    if about.better == "lower" and found and max(found) > 20 * min(found) > 0:
        axis.set_yscale("log")


def plot_curve(records: Sequence[Record], path: Path) -> None:
    """Frechet distance and CLIP score against the training step."""
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    axes = figure.subplots(1, 2)
    for axis, key in zip(axes, ("frechet_distance", "clip_score"), strict=True):
        draw_curves(axis, records, key)
    axes[0].set_title(f"Fréchet distance ({network_name(records[-1]['network'])})", loc="left")
    labels = axes[0].get_legend_handles_labels()
    columns = min(len(labels[1]), 3)
    figure.legend(*labels, loc="outside lower center", ncols=columns, frameon=False, fontsize=9)
    save_plot(figure, path)
