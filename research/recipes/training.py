"""Trainings of recipes: processes of train_latent_t2f.py, their cost, and one evaluated run.

Time is processor seconds of the training's process, all threads together, so that other programs of
the machine disturb less. On a GPU it is wall-clock seconds.
"""

from __future__ import annotations

import itertools
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.timing import ROOT, machine
from research.recipes.evaluation import Evaluation
from research.recipes.recipe import Recipe
from utils.base.errors import DIVERGED, UserError
from utils.base.files import read_json_lines, write_json
from utils.pretrained.denoisers import load_denoiser

PROBES = 3  # short trainings that measure what a step costs
PROBE_STEPS, PROBE_WINDOWS = 50, 10  # each of so many steps, timed in windows of equal length
EQUAL = (  # for all trainings
    "train.epochs=null",
    "log.sample_every=0",
    "log.ckpt_after=0",
    "log.keep_last=null",
    "log.use_tensorboard=false",
)
Lines = list[dict[str, Any]]  # of a metrics.jsonl


class Diverged(Exception):
    """The training stopped because its loss was not finite any more."""


def unit() -> str:
    """Return the unit of all times of a comparison."""
    return "s" if torch.cuda.is_available() else "processor s"


def seconds_of(line: Mapping[str, Any], steps: int, batchsize: int) -> float:
    """Return the time of the `steps` that a line of metrics.jsonl is about, in `unit()`."""
    if torch.cuda.is_available():
        return float(steps * batchsize / line["images_per_s"])
    return float(line["cpu_s"])


def training_seconds(lines: Lines, batchsize: int) -> float:
    """Return the time of all steps, without evaluation and sample grids."""
    steps = [0, *(line["step"] for line in lines)]
    pairs = zip(lines, itertools.pairwise(steps), strict=True)
    return sum(seconds_of(line, step - before, batchsize) for line, (before, step) in pairs)


def run_training(recipe: Recipe, folder: Path, overrides: Sequence[str]) -> Lines:
    """Train a recipe in `folder`, or go on there; return the lines of its metrics.jsonl.

    SIGTERM is passed on, so that the training saves before it ends. Raise Diverged if the loss is
    not finite, and UserError if the training stops for another reason.
    """
    command = [sys.executable, "train_latent_t2f.py", "--config", str(recipe.file.resolve())]
    command += ["--results_dir", str(folder.parent.resolve()), "--exp_name", folder.name]
    with subprocess.Popen([*command, *EQUAL, *overrides], cwd=ROOT) as training:
        before = signal.signal(signal.SIGTERM, lambda number, _: training.send_signal(number))
        try:
            code = training.wait()
        finally:
            signal.signal(signal.SIGTERM, before)
    if code == DIVERGED:
        raise Diverged
    if code:
        raise UserError(f"the training in {folder} stopped; the same command goes on")
    return read_json_lines(folder / "metrics.jsonl")


def cost_of_step(probes: Sequence[Sequence[float]]) -> float:
    """Return the seconds of a recipe's mean step, from the windows of its probes.

    A probe runs through the whole schedule, masked steps and unmasked tail, in PROBE_STEPS steps.
    Each part of the schedule counts with the fastest of its windows, because other programs only
    make them slower. The first window also pays for the start and counts like the second one.
    """
    least = [min(windows) for windows in zip(*probes, strict=True)]
    return sum([least[1], *least[1:]]) / PROBE_STEPS


class Costs:
    """Costs of the recipes' steps; those that were measured are kept in the folder `work`.

    Copies of another machine's probes.json count there: a GPU then trains for as many steps as that
    machine in equal time.
    """

    def __init__(self, work: Path) -> None:
        self.work = work

    @property
    def unit(self) -> str:
        """The unit of the costs: that of the probes that are kept, or `unit()`."""
        kept = sorted(self.work.glob("*/probes.json"))
        content = json.loads(kept[0].read_text(encoding="utf-8")) if kept else {}
        return str(content.get("unit", unit()))

    def cost(self, recipe: Recipe) -> float:
        """Return the seconds of a step of a recipe; run the probes that are missing.

        Raise UserError if the recipe has changed since it was measured, or fails.
        """
        probes = self.kept(recipe)
        while len(probes) < PROBES:
            probes.append(self._probe(recipe))
            content = {"settings": recipe.settings, "unit": self.unit, "probes": probes}
            write_json(self._file(recipe), content)
        return cost_of_step(probes)

    def steps(self, recipe: Recipe, recipes: Sequence[Recipe], seconds: float) -> int:
        """Return the steps of a recipe, at least one, that take `seconds`.

        The first of `recipes` whose steps cost as much is measured, so that all of them take
        equally many; a recipe that was measured itself keeps its own number.
        """
        measured = recipe if self.kept(recipe) else next(r for r in recipes if recipe.costs_like(r))
        return max(round(seconds / self.cost(measured)), 1)

    def kept(self, recipe: Recipe) -> list[list[float]]:
        """Return the windows of the probes that were run.

        Raise UserError if the recipe has changed since then.
        """
        file = self._file(recipe)
        if not file.exists():
            return []
        content = json.loads(file.read_text(encoding="utf-8"))
        if content["settings"] != recipe.settings:
            before, now = content["settings"], recipe.settings
            changed = [k for k in sorted(before | now) if before.get(k) != now.get(k)]
            raise UserError(
                f"{recipe.file}: {', '.join(changed)} changed after it was measured; give the "
                f"changed recipe another name, or remove {file.parent} to measure it anew"
            )
        return list(content["probes"])

    def _file(self, recipe: Recipe) -> Path:
        return self.work / recipe.name / "probes.json"

    def _probe(self, recipe: Recipe) -> list[float]:
        """Train for PROBE_STEPS steps; return the seconds of each window."""
        folder, every = self.work / recipe.name / "probe", PROBE_STEPS // PROBE_WINDOWS
        shutil.rmtree(folder, ignore_errors=True)
        lengths = [f"train.max_num_steps={PROBE_STEPS}", f"log.log_every={every}"]
        try:
            lines = run_training(recipe, folder, lengths)
        except Diverged:
            raise UserError(
                f"{recipe.file}: the loss is not finite within {PROBE_STEPS} steps; lower "
                "train.lr, or take the recipe out"
            ) from None
        shutil.rmtree(folder)  # its checkpoints are of no use
        return [seconds_of(line, every, recipe.config.train.batchsize) for line in lines]


@dataclass(frozen=True)
class Plan:
    """A run: `steps` of a recipe with a seed, in `folder`.

    training: the recipe that is trained: `recipe`, or an earlier one that trains like it.
    start: released weights from which the training starts.
    """

    recipe: Recipe
    seed: int
    steps: int
    folder: Path
    training: Recipe
    start: Path | None = None

    @property
    def checkpoint(self) -> Path:
        """The last checkpoint of the training."""
        return self.folder / "checkpoints" / f"{self.steps:07d}.pt"


def measure(plan: Plan, evaluation: Evaluation) -> dict[str, Any]:
    """Train and evaluate as planned; a run that was evaluated before is read.

    Returns recipe, seed, steps, machine, images_per_second of the training, `diverged`, and
    `metrics` (see Evaluation.evaluate).
    """
    kept = plan.folder / f"{plan.recipe.name}_{evaluation.size}.json"
    if kept.exists():
        run: dict[str, Any] = json.loads(kept.read_text(encoding="utf-8"))
        return run
    run = {"recipe": plan.recipe.name, "seed": plan.seed, "steps": plan.steps}
    run |= {"machine": machine(), "diverged": False, "metrics": {}, "images_per_second": None}
    options = [f"train.max_num_steps={plan.steps}", f"train.seed={plan.seed}"]
    options += [f"log.ckpt_every={plan.steps}", f"log.log_every={plan.steps}"]
    if plan.start:
        options += ["--ckpt_path", str(plan.start.resolve())]
    batchsize = plan.recipe.config.train.batchsize
    try:
        seconds = training_seconds(run_training(plan.training, plan.folder, options), batchsize)
    except Diverged:
        run["diverged"] = True
    else:
        run["images_per_second"] = plan.steps * batchsize / seconds
        denoiser, _ = load_denoiser(plan.checkpoint, evaluation.device)
        run["metrics"] = evaluation.evaluate(denoiser, plan.recipe.config)
    write_json(kept, run)
    return run
