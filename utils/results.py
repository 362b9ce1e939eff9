"""The `evaluation/` folder of an experiment: results.jsonl, results.csv and curve.png."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from utils.errors import note
from utils.report import aligned, save_figure, tidy, write_csv

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
        write_csv(self.folder / "results.csv", self.records)

    def plot(self) -> None:
        """Bring curve.png up to date."""
        plot_curve(self.records, self.folder / "curve.png")


def guidance_name(cfg_scale: float | None) -> str:
    """A guidance scale for people."""
    return "no guidance" if cfg_scale is None else f"guidance {cfg_scale:g}"


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
                f"{record['frechet_distance']:.4g}",
                "-" if record["clip_score"] is None else f"{record['clip_score']:.2f}",
                str(record["n"]),
                f"{record['seconds']:.0f} s",
                "*" if record is best_of(records) else "",
            )
        )
    return aligned(rows)


def plot_curve(records: Sequence[Record], path: Path) -> None:
    """Frechet distance and CLIP score against the training step, a line per way of sampling."""
    lines: dict[str, dict[int, Record]] = {}
    for record in records:
        label = guidance_name(record["cfg_scale"])
        label += f", {record['num_steps']} {record['solver']} steps, {record['n']} images"
        lines.setdefault(label, {})[record["step"]] = record  # a later record replaces an earlier
    network = "CLIP" if records[-1]["network"].startswith("clip") else "Inception"
    panels = (
        ("frechet_distance", f"Fréchet distance ({network} features)", "lower is better"),
        ("clip_score", "CLIP score", "higher is better"),
    )
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    axes = figure.subplots(1, 2)
    for axis, (key, title, hint) in zip(axes, panels, strict=True):
        for label, by_step in lines.items():
            steps = sorted(by_step)
            values = np.array([by_step[step][key] for step in steps], float)  # None becomes nan
            axis.plot(steps, values, marker="o", markersize=4, linewidth=1.8, label=label)
        tidy(axis, title, hint)
        axis.set_xlabel("training step")
        axis.margins(x=0.04)
    top = max(record["frechet_distance"] for record in records)
    if top > 20 * best_of(records)["frechet_distance"]:
        axes[0].set_yscale("log")
    figure.legend(
        *axes[0].get_legend_handles_labels(),
        loc="outside lower center",
        ncols=min(len(lines), 3),
        frameon=False,
        fontsize=9,
    )
    save_figure(figure, path)
