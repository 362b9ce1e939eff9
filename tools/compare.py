"""Compare runs on one page: settings that differ, curves, best results, pictures side by side.

Two trainings:     python tools/compare.py results/first results/second
With new images:   python tools/compare.py results/a results/b --prompt "red hair" --seeds 0-3

Reads what the folders of the trainings hold: config.yaml, metrics.jsonl, evaluation/results.jsonl
and samples/. With --prompt it also draws from each run's last checkpoint, with equal seeds and the
run's own sampler settings. Writes one HTML file, which loads no other file.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

# First: from here on, Ctrl-C ends the script with one line.
from utils.base.errors import UserError
from utils.base.script import one_line_errors

# isort: split
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from tools.runs import Run, best_of_each_step, differing_settings, load_runs
from utils.config.command_line import HelpFormatter
from utils.config.parsing import parse_seeds
from utils.evaluation.html_report import (
    Picture,
    data_uri,
    png_uri,
    svg_uri,
    table_rows,
    write_page,
)
from utils.evaluation.metric_names import MetricInfo, end_key, metrics_in
from utils.evaluation.plots import style_axis
from utils.evaluation.results import setting_names
from utils.pretrained.checkpoint_files import list_checkpoints
from utils.pretrained.encoders import usable_device
from utils.sampling.prompts import Source, text_prompt
from utils.sampling.text_to_face import TextToFace

SMOOTHED = 20  # parts of a training over which its loss is averaged


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    add = parser.add_argument
    add("runs", nargs="+", type=Path, metavar="run", help="folders of trainings, results/<name>")
    add(
        "--prompt", action="append", default=None, dest="prompts", type=text_prompt, metavar="TEXT",
        help="draw this with every run; may be repeated; None = show the runs' sample grids",
    )  # fmt: skip
    add("--seeds", type=parse_seeds, default="0-3", help="seeds of the pictures of a prompt")
    add(
        "--device",
        default="cuda" if torch.cuda.is_available() else "cpu",
        help="where to draw, e.g. cpu or cuda:1",
    )
    add("--out", type=Path, default=Path("results/compare.html"), help="page to write")
    return parser.parse_args()


def colour(number: int) -> str:
    """Return the colour of a run."""
    return to_hex(f"C{number % 10}")


def running_mean(values: np.ndarray) -> np.ndarray:
    """Average values (N,) over windows of N / SMOOTHED, which are cut at both ends -> (N,)."""
    half = len(values) // (2 * SMOOTHED)
    sums = np.concatenate([[0], np.cumsum(values)])
    places = np.arange(len(values))
    first, last = np.maximum(places - half, 0), np.minimum(places + half + 1, len(values))
    return (sums[last] - sums[first]) / (last - first)


def plot_losses(axis: Axes, runs: Sequence[Run]) -> None:
    """Plot the training losses of all runs: each value, and their running mean."""
    for number, run in enumerate(runs):
        if run.losses:
            steps, losses = (np.array(list(x), float) for x in (run.losses, run.losses.values()))
            axis.plot(steps, losses, color=colour(number), linewidth=0.6, alpha=0.35)
            axis.plot(steps, running_mean(losses), color=colour(number), linewidth=1.8)
    style_axis(axis, "Training loss", "lower is better")
    axis.set_xlabel("training step")


def plot_metric(axis: Axes, runs: Sequence[Run], key: str, about: MetricInfo) -> None:
    """Plot one metric of all runs over the training, with its interval where it has one."""
    for number, run in enumerate(runs):
        records = best_of_each_step(run.records)
        values, low, high = (
            np.array([record.get(name) for record in records.values()], float)  # None is nan
            for name in (key, end_key(key, "low"), end_key(key, "high"))
        )
        axis.plot(list(records), values, color=colour(number), marker="o", markersize=4, lw=1.8)
        axis.fill_between(list(records), low, high, color=colour(number), alpha=0.12, linewidth=0)
    style_axis(axis, about.label, f"{about.better} is better")
    axis.set_xlabel("training step")
    axis.margins(x=0.04)


def charts(runs: Sequence[Run], metrics: dict[str, MetricInfo]) -> dict[str, str]:
    """Return label -> plot as a data URI: the loss, then each metric."""
    size = (5.6, 3.4) if len(metrics) < 4 else (4.1, 2.9)  # inches
    found = {}
    if any(run.losses for run in runs):
        figure = Figure(figsize=size, layout="constrained")
        plot_losses(figure.subplots(), runs)
        found["Training loss"] = svg_uri(figure)
    for key, about in metrics.items():
        figure = Figure(figsize=size, layout="constrained")
        plot_metric(figure.subplots(), runs, key, about)
        found[about.label] = svg_uri(figure)
    return found


def grids(runs: Sequence[Run]) -> tuple[list[Picture], bool]:
    """Return the runs' sample grids of the last step that all have, or else of their last steps.

    The second value is True if the steps differ.
    """
    having = [run for run in runs if run.grids]
    shared = set.intersection(*(set(run.grids) for run in having)) if having else set()
    chosen = [(run, max(shared) if shared else max(run.grids)) for run in having]
    pictures = [
        Picture(data_uri(run.grids[step].read_bytes()), f"{run.name}, step {step:,}")
        for run, step in chosen
    ]
    return pictures, len({step for _, step in chosen}) > 1


def generated_by(
    run: Run, prompts: Sequence[Source], seeds: Sequence[int], device: str
) -> list[str]:
    """Draw prompts with a run's last checkpoint; return a row of pictures for each as data URI.

    Raises UserError if the run has no checkpoint, or its network takes other conditions.
    """
    checkpoints = list_checkpoints(run.folder / "checkpoints")
    if not checkpoints:
        raise UserError(f"{run.folder}: holds no checkpoint to draw from; leave --prompt out")
    *_, path = checkpoints.values()
    generation = TextToFace.load(path, device=device).generate(list(prompts), seeds=list(seeds))
    pictures = np.stack([np.asarray(image) for image in generation.images])  # (P x S, H, W, 3)
    strips = np.split(pictures, len(prompts))
    return [png_uri(np.concatenate(list(strip), axis=1)) for strip in strips]


@one_line_errors
def main() -> None:
    """Write the page."""
    args = parse_args()
    device = str(usable_device(args.device))
    runs = load_runs(args.runs)
    names = [run.name for run in runs]
    evaluated = [(number, run.best) for number, run in enumerate(runs)]
    best = [(number, record) for number, record in evaluated if record is not None]
    records = [record for _, record in best]
    metrics = metrics_in(records)
    rows = table_rows(records, metrics) if records else []
    for row, (number, _), name in zip(rows, best, setting_names(records), strict=True):
        row |= {"name": names[number], "colour": colour(number), "settings": name}
    generated: dict[str, list[Picture]] = {}
    if args.prompts:
        strips = [generated_by(run, args.prompts, args.seeds, device) for run in runs]
        for prompt, uris in zip(args.prompts, zip(*strips, strict=True), strict=True):
            generated[prompt.label] = [Picture(*pair) for pair in zip(uris, names, strict=True)]
    pictures, steps_differ = grids(runs)
    write_page(
        args.out,
        "compare.html",
        names=names,
        colours=[colour(number) for number in range(len(runs))],
        header=[about.label for about in metrics.values()],
        rows=rows,
        counts_differ=len({record["n"] for record in records}) > 1,
        not_evaluated=[run.name for run in runs if not run.records],
        settings=differing_settings(runs),
        charts=charts(runs, metrics),
        generated=generated,
        seeds=", ".join(map(str, args.seeds)),
        grids=pictures,
        steps_differ=steps_differ,
        without_grid=[run.name for run in runs if not run.grids],
        made=time.strftime("%d %B %Y, %H:%M"),
    )
    print(f"{len(runs)} runs: {args.out}")


if __name__ == "__main__":
    main()
