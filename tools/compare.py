"""Compare runs on one page: settings that differ, curves, best results, images side by side.

Two trainings:   python tools/compare.py results/first results/second
With new images: python tools/compare.py results/a results/b --prompt "red hair" --seeds 0-3

Reads what the folders of the trainings hold: config.yaml, metrics.jsonl, evaluation/results.jsonl
and samples/. With --prompt, each run's last checkpoint also generates images, with equal seeds and
the run's own sampler settings. Writes one HTML file, which loads no other file.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

# First: from here on, Ctrl-C ends the script with one line.
from utils.base.errors import UserError, note
from utils.base.script import one_line_errors

# isort: split
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_hex

from utils.base.files import read_json_lines
from utils.config.command_line import ArgumentParser
from utils.config.parsing import file_to_write, parse_seeds
from utils.config.schema import Config
from utils.evaluation.html_report import (
    chart_size,
    data_uri,
    metric_charts,
    png_uri,
    svg_uri,
    table_rows,
    write_page,
)
from utils.evaluation.metric_names import MetricInfo, distance_of, metrics_in
from utils.evaluation.plots import style_axis
from utils.evaluation.results import Record, Results, best_of, comparable, setting_names
from utils.pretrained.checkpoint_files import list_checkpoints
from utils.pretrained.effective_config import experiment_config, read_config
from utils.pretrained.encoders import usable_device
from utils.sampling.prompts import Source, text_prompt
from utils.sampling.text_to_face import TextToFace
from utils.training.comparison import flat_settings

SMOOTHED = 20  # windows of a training over which its loss is averaged
# Keys that say where things lie and not how a run was made.
PLACES = ("log.tag", "train.num_workers", "train.step_timeout", "train.max_bad_steps")
PageImage = tuple[str, str]  # data URI, and the text below it


class Run(NamedTuple):
    """A training with what its folder holds."""

    name: str
    folder: Path
    config: Config
    losses: dict[int, float]  # step -> training loss
    records: list[Record]  # its evaluations that can be compared with those of the other runs
    grids: dict[int, Path]  # step -> sample grid


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("runs", nargs="+", type=Path, metavar="run", help="folders of trainings, results/<name>")
    add(
        "--prompt", action="append", default=None, dest="prompts", type=text_prompt, metavar="TEXT",
        help="generate this with every run; may be repeated; None = show the runs' sample grids",
    )  # fmt: skip
    add("--seeds", type=parse_seeds, default="0-3", help="seeds of the images of a prompt")
    add(
        "--device",
        default="cuda" if torch.cuda.is_available() else "cpu",
        help="where to compute, e.g. cpu or cuda:1",
    )
    add("--out", type=file_to_write, default=Path("results/compare.html"), help="page to write")
    return parser.parse_args()


def load_runs(folders: Sequence[Path]) -> list[Run]:
    """Read the folders of trainings. A note names evaluations that cannot be compared.

    Raises UserError if there are fewer than two, or if one holds no run or nothing to compare.
    """
    folders = list(dict.fromkeys(folder.resolve() for folder in folders))
    if len(folders) < 2:
        raise UserError("name two runs or more, e.g. results/first results/second")
    names = [folder.name for folder in folders]
    if len(set(names)) < len(names):
        names = [str(folder) for folder in folders]
    runs = [_load_run(folder, name) for folder, name in zip(folders, names, strict=True)]
    first = next((run for run in runs if run.records), None)
    if first is None:
        return runs
    latest, compared = first.records[-1], []
    for run in runs:
        records = comparable(run.records, latest)
        if left_out := len(run.records) - len(records):
            note(
                f"{run.name}: {left_out} evaluations left out, as their reference or feature "
                f"network is not that of {first.name}'s last one"
            )
        compared.append(run._replace(records=records))
    return compared


def _load_run(folder: Path, name: str) -> Run:
    if not folder.is_dir():
        raise UserError(f"{folder}: there is no folder of a run")
    config_file = experiment_config(folder)
    if config_file is None:
        raise UserError(f"{folder}: holds no run: neither config.yaml nor a checkpoint with one")
    losses = {  # of a step that was done twice, the last one
        int(line["step"]): float(line["loss"])
        for line in read_json_lines(folder / "metrics.jsonl", note)
        if None not in (line.get("step"), line.get("loss"))
    }
    losses = dict(sorted(losses.items()))
    records = Results(folder / "evaluation").records
    if not losses and not records:
        raise UserError(
            f"{folder}: holds no metrics: neither metrics.jsonl nor evaluation/results.jsonl"
        )
    paths = [path for path in (folder / "samples").glob("*.png") if path.stem.isdigit()]
    grids = {int(path.stem): path for path in sorted(paths)}
    return Run(name, folder, read_config(config_file), losses, records, grids)


def differing_settings(runs: Sequence[Run]) -> dict[str, list[str]]:
    """Return the keys in which the configs of the runs differ, with the value of each run."""
    settings = [flat_settings(run.config) for run in runs]
    rows = {key: [str(values[key]) for values in settings] for key in settings[0]}
    return {k: row for k, row in rows.items() if k not in PLACES and len(set(row)) > 1}


def colour(number: int) -> str:
    """Return the colour of a run."""
    return to_hex(f"C{number % 10}")


def running_mean(values: np.ndarray) -> np.ndarray:
    """Average values (N,) over windows of N / SMOOTHED, which are cut at both ends -> (N,)."""
    window = np.ones(2 * (len(values) // (2 * SMOOTHED)) + 1)
    counts = np.convolve(np.ones(len(values)), window, mode="same")
    return np.asarray(np.convolve(values, window, mode="same") / counts)


def plot_losses(axis: Axes, runs: Sequence[Run]) -> None:
    """Plot the training losses of all runs: each value, and their running mean."""
    for number, run in enumerate(runs):
        if run.losses:
            steps, losses = (np.array(list(x), float) for x in (run.losses, run.losses.values()))
            axis.plot(steps, losses, color=colour(number), linewidth=0.6, alpha=0.35)
            axis.plot(steps, running_mean(losses), color=colour(number), linewidth=1.8)
    style_axis(axis, "Training loss", "lower is better")
    axis.set_xlabel("training step")


def charts(runs: Sequence[Run], metrics: Mapping[str, MetricInfo]) -> dict[str, str]:
    """Return label -> plot as a data URI: the loss, then each metric.

    Of several sampler settings, each step shows the one with the lowest Fréchet distance.
    """
    lines: dict[str, dict[int, Record]] = {}
    for run in runs:
        best = {r["step"]: r for r in sorted(run.records, key=distance_of, reverse=True)}
        lines[run.name] = dict(sorted(best.items()))
    size, found = chart_size(1 + len(metrics)), {}
    if any(run.losses for run in runs):
        found["Training loss"] = svg_uri(size, lambda axis: plot_losses(axis, runs))
    labels = [about.label for about in metrics.values()]
    return found | dict(zip(labels, metric_charts(lines, metrics, size), strict=True))


def grids(runs: Sequence[Run]) -> tuple[list[PageImage], bool]:
    """Return the runs' sample grids of the last step that all have, or else of their last steps.

    The second value is True if the steps differ.
    """
    having = [run for run in runs if run.grids]
    shared = set.intersection(*(set(run.grids) for run in having)) if having else set()
    steps = [max(shared or run.grids) for run in having]
    images = [
        (data_uri(run.grids[step].read_bytes()), f"{run.name}, step {step:,}")
        for run, step in zip(having, steps, strict=True)
    ]
    return images, len(set(steps)) > 1


def last_checkpoint(run: Run) -> Path:
    """Return a run's last checkpoint; raise UserError if it has none."""
    checkpoints = list_checkpoints(run.folder / "checkpoints")
    if not checkpoints:
        raise UserError(f"{run.folder}: holds no checkpoint to sample from; leave --prompt out")
    return checkpoints[max(checkpoints)]


def generated_by(
    path: Path, prompts: Sequence[Source], seeds: Sequence[int], device: str
) -> list[str]:
    """Generate prompts by a checkpoint; return a row of images for each as data URI.

    Raises UserError if its network takes other conditions.
    """
    generation = TextToFace.load(path, device=device).generate(list(prompts), seeds=list(seeds))
    images = np.stack([np.asarray(image) for image in generation.images])  # (P x S, H, W, 3)
    strips = np.split(images, len(prompts))
    return [png_uri(np.concatenate(list(strip), axis=1)) for strip in strips]


@one_line_errors
def main() -> None:
    """Write the page."""
    args = parse_args()
    device = str(usable_device(args.device))
    runs = load_runs(args.runs)
    names = [run.name for run in runs]
    evaluated = [number for number, run in enumerate(runs) if run.records]
    records = [best_of(runs[number].records) for number in evaluated]
    metrics = metrics_in(records)
    rows = table_rows(records, metrics) if records else []
    for row, number, settings in zip(rows, evaluated, setting_names(records), strict=True):
        row |= {"name": names[number], "colour": colour(number), "settings": settings}
    generated: dict[str, list[PageImage]] = {}
    if args.prompts:
        paths = [last_checkpoint(run) for run in runs]  # raises before the first one is loaded
        strips = [generated_by(path, args.prompts, args.seeds, device) for path in paths]
        for prompt, uris in zip(args.prompts, zip(*strips, strict=True), strict=True):
            generated[prompt.label] = list(zip(uris, names, strict=True))
    sample_grids, steps_differ = grids(runs)
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
        grids=sample_grids,
        steps_differ=steps_differ,
        without_grid=[run.name for run in runs if not run.grids],
        made=time.strftime("%d %B %Y, %H:%M"),
    )
    print(f"{len(runs)} runs: {args.out}")


if __name__ == "__main__":
    main()
