"""One run of a recipe: train with a seed, then judge checkpoints; a run that was killed goes on."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.timing import machine
from research.recipes.evaluation import Evaluation
from research.recipes.recipe import Recipe
from research.recipes.trainings import Diverged, clock, run_training
from utils.base.files import write_json
from utils.base.progress import progress
from utils.pretrained.checkpoint_files import list_checkpoints
from utils.pretrained.denoisers import load_denoiser

WEIGHTS = {"ema": "", "model": ", not averaged"}  # weights that are judged -> end of the label


@dataclass(frozen=True)
class Plan:
    """A run: `steps` of a recipe with a seed, in `folder`; `points` checkpoints are kept.

    training: the recipe that is trained: `recipe`, or an earlier one that trains like it.
    weights: those that are judged, keys of WEIGHTS. curve: judge all checkpoints, not only the
    last. start: released weights from which the training starts.
    """

    recipe: Recipe
    seed: int
    steps: int
    folder: Path
    points: int
    training: Recipe
    weights: tuple[str, ...] = ("ema",)
    curve: bool = True
    start: Path | None = None

    @property
    def every(self) -> int:
        """Steps between two checkpoints."""
        return -(-self.steps // self.points)


def measure(plan: Plan, evaluation: Evaluation) -> list[dict[str, Any]]:
    """Train and judge as planned; return a run for each kind of weights.

    A run is a record of the JSON of all results: recipe, label, seed, steps, machine, images that
    are trained on in a second, `diverged`, and `points`. A point holds step, seconds and metrics of
    a judged checkpoint.
    """
    own = "" if plan.training is plan.recipe else f"_{plan.recipe.name}"
    kept = plan.folder / f"judged_{len(evaluation.records)}{own}.json"
    runs = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else {}
    if not all(_is_complete(runs.get(which), plan.steps) for which in plan.weights):
        for which in plan.weights:
            runs.setdefault(which, _new_run(plan, which))
        seconds = _train(plan, runs)
        for which in plan.weights:
            _evaluate(plan, which, runs, evaluation, seconds, kept)
        for checkpoint in list(list_checkpoints(plan.folder / "checkpoints").values())[:-1]:
            checkpoint.unlink()  # it is judged, and large
    return [runs[which] for which in plan.weights]


def _is_complete(run: dict[str, Any] | None, steps: int) -> bool:
    """Return True if the training diverged, or its last checkpoint was judged."""
    return run is not None and (
        run["diverged"] or any(point["step"] == steps for point in run["points"])
    )


def _new_run(plan: Plan, which: str) -> dict[str, Any]:
    """Return the record of a run before its training."""
    return {
        "recipe": plan.recipe.name,
        "label": plan.recipe.name + WEIGHTS[which],
        "seed": plan.seed,
        "steps": plan.steps,
        "machine": machine(),
        "diverged": False,
        "images_per_second": None,
        "points": [],
    }


def _train(plan: Plan, runs: dict[str, dict[str, Any]]) -> dict[int, float]:
    """Train, and note the rate in all `runs`; return step -> seconds, empty if it diverged."""
    batchsize, every = plan.recipe.config.train.batchsize, plan.every
    options = [f"train.max_num_steps={plan.steps}", f"train.seed={plan.seed}"]
    options += [f"log.ckpt_every={every}", f"log.log_every={every}"]
    if plan.start:
        options += ["--ckpt_path", str(plan.start.resolve())]
    try:
        seconds = clock(run_training(plan.training, plan.folder, options), batchsize)
    except Diverged:
        for run in runs.values():
            run["diverged"] = True
        return {}
    for run in runs.values():
        run["images_per_second"] = plan.steps * batchsize / seconds[plan.steps]
    return seconds


def _evaluate(
    plan: Plan,
    which: str,
    runs: dict[str, dict[str, Any]],
    evaluation: Evaluation,
    seconds: dict[int, float],
    kept: Path,
) -> None:
    """Evaluate the weights `which` at the planned checkpoints; write `runs` after each."""
    points, label = runs[which]["points"], runs[which]["label"]
    done = {point["step"] for point in points}
    checkpoints = list_checkpoints(plan.folder / "checkpoints")
    due = [s for s in checkpoints if s in seconds and (plan.curve or s == plan.steps)]
    for step in progress(due, f"judge {label}", len(due), "checkpoint"):
        if step in done:
            continue
        denoiser, _ = load_denoiser(checkpoints[step], evaluation.device, which)
        metrics = evaluation.evaluate(denoiser, plan.recipe.config)
        points.append({"step": step, "seconds": seconds[step], **metrics})
        write_json(kept, runs)
    write_json(kept, runs)
