"""All runs of all recipes in one JSON that grows; recipes that lost stay in it."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.timing import ROOT
from research.recipes.recipe import Recipe
from utils.base.errors import UserError, refusing

Run = dict[str, Any]  # see training.measure
MAIN = "frechet_distance"  # orders the rows
COLUMNS = {  # metric → title of its column and format
    "frechet_distance": ("Fréchet distance", ".1f"),
    "frechet_distance_other": ("Fréchet distance, other features", ".1f"),
    "colour_distance": ("colours", ".2f"),
    "attributes": ("attributes of captions, %", ".1f"),
    "retrieval_5": ("own caption among the nearest 5, %", ".1f"),
    "traits_shown": ("traits shown, %", ".1f"),
    "unseen_shown": ("of unseen sentences, %", ".1f"),
    "combined_shown": ("both of two, %", ".1f"),
    "recall": ("recall", ".2f"),
    "recall_other": ("recall, other features", ".2f"),
    "variety": ("variety", ".2f"),
    "caption_variety": ("variety of a caption", ".2f"),
    "caption_variety_other": ("variety of a caption, other features", ".2f"),
    "to_training": ("distance to training images", ".2f"),
    "to_training_other": ("distance to training images, other features", ".2f"),
    "stated": ("stated by short sentences, %", ".1f"),
    "clip_score": ("CLIP score", ".1f"),
    "loss": ("held-out loss", ".4f"),
}
# Metrics that the table leaves out; each run in the JSON has them.
NOT_IN_TABLE = ("combined_shown", "recall_other", "caption_variety_other", "to_training_other")


class Results:
    """Runs of recipes at equal time, and the settings of each recipe.

    setup: facts that are equal for all runs, e.g. `seconds` and `images`.
    """

    def __init__(self, path: Path, setup: Mapping[str, Any]) -> None:
        """Read the runs in the JSON `path`, if there is one.

        Raise UserError if they were measured with another setup, or if the file is damaged.
        """
        self.path, self.setup = path, dict(setup)
        self.recipes: dict[str, dict[str, Any]] = {}
        self.runs: list[Run] = []
        if not path.exists():
            return
        with refusing(f"{path}: not readable as results; give another --out"):
            content = json.loads(path.read_text(encoding="utf-8"))
            self.recipes, self.runs = dict(content["recipes"]), list(content["runs"])
            before = dict(content["setup"])
        for key, value in self.setup.items():
            if before.get(key) != value:
                raise UserError(
                    f"{path}: its runs have {key} = {before.get(key)}, these have {value}; they "
                    "cannot be compared: give another --out, or remove the file"
                )

    def add(self, recipe: Recipe, run: Run) -> None:
        """Add a run of a recipe; it replaces the one of equal seed.

        Runs of a recipe whose settings have changed since are removed.
        """
        name, settings = recipe.name, recipe.settings
        if self.recipes.get(name, {}).get("settings", settings) != settings:
            self.runs = [other for other in self.runs if other["recipe"] != name]
        file = recipe.file.resolve()
        shown = file.relative_to(ROOT) if file.is_relative_to(ROOT) else file
        self.recipes[name] = {"file": str(shown), "about": recipe.about, "settings": settings}
        key = (name, run["seed"])
        self.runs = [r for r in self.runs if (r["recipe"], r["seed"]) != key] + [run]

    def to_dict(self) -> dict[str, Any]:
        """Return what the JSON holds beside the table."""
        return {"setup": self.setup, "recipes": self.recipes, "runs": self.runs}

    def rows(self) -> list[dict[str, Any]]:
        """Return a row for each recipe, the lowest Fréchet distance first, diverged ones last."""
        by_recipe: dict[str, list[Run]] = {}
        for run in self.runs:
            by_recipe.setdefault(run["recipe"], []).append(run)
        ordered = sorted(by_recipe, key=lambda name: _distance(by_recipe[name]))
        shown = [key for key in COLUMNS if key not in NOT_IN_TABLE]
        measured = [key for key in shown if _values(self.runs, key) or key == MAIN]
        return [_row(name, by_recipe[name], measured) for name in ordered]

    def notes(self) -> list[str]:
        """Return the sentences below the table."""
        sentences = [
            f"Equal time for all recipes: {self.setup['seconds']:g} {self.setup['unit']} of "
            "training steps, without start-up, checkpoints and evaluation.",
            f"{self.setup['images']} images of held-out captions, from equal noise. Values are "
            "means over the seeds of the training, with the lowest and the highest in brackets.",
        ]
        real = (run["metrics"].get("real") for run in self.runs)
        if found := next((metrics for metrics in real if metrics), None):
            sentences.append(real_images(found))
        machines = sorted({run["machine"] for run in self.runs})
        if len(machines) > 1:
            sentences.append(f"Times of several machines do not compare: {'; '.join(machines)}.")
        return sentences


def _values(runs: Sequence[Run], key: str) -> list[float]:
    """Return a metric of each run that did not diverge; runs without it are left out."""
    found = (run["metrics"].get(key) for run in runs if not run["diverged"])
    return [float(value) for value in found if value is not None]


def _distance(runs: Sequence[Run]) -> float:
    """Return the mean Fréchet distance; infinite if a run diverged."""
    values = _values(runs, MAIN)
    return sum(values) / len(values) if len(values) == len(runs) else math.inf


def _row(name: str, runs: Sequence[Run], metrics: Sequence[str]) -> dict[str, Any]:
    row = {"recipe": name, "seeds": len(runs), "steps": runs[0]["steps"]}
    for key in metrics:
        title, form = COLUMNS[key]
        row[title] = mean_and_range(_values(runs, key), form)
    if lost := sum(run["diverged"] for run in runs):
        row[COLUMNS[MAIN][0]] = f"{lost} diverged"
    return row


def real_images(real: Mapping[str, Any]) -> str:
    """Return the sentence about the same metrics of real held-out images."""
    low, high = (real[f"retrieval_5_{end}"] for end in ("low", "high"))
    rates = [trait["rate"] for trait in real["traits"].values() if trait["rate"] is not None]
    return (
        f"Real held-out images: the own caption is among the nearest 5 in {real['retrieval_5']:.1f}"
        f" % ({low:.1f} … {high:.1f}), and traits are seen in {statistics.fmean(rates):.1f} % of "
        "the images whose captions state them."
    )


def mean_and_range(values: Sequence[float], form: str) -> str:
    """Return `mean (lowest … highest)`."""
    if not values:
        return "–"
    ends = f" ({min(values):{form}} … {max(values):{form}})" if len(values) > 1 else ""
    return format(sum(values) / len(values), form) + ends
