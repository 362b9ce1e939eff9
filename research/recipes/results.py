"""All runs of all recipes: a JSON that grows, and keeps the recipes that were dropped."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.timing import ROOT
from research.recipes.recipe import Recipe
from utils.base.errors import UserError, refusing

Run = dict[str, Any]  # see measure.measure


class Results:
    """Runs of recipes at equal time, and the settings of each recipe.

    setup: facts that are equal for all runs, e.g. `seconds` and `pictures`.
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
            if "runs" not in content:  # a table of an older version
                return
            self.recipes, self.runs = dict(content["recipes"]), list(content["runs"])
            before = dict(content["setup"])
        for key, value in self.setup.items():
            if before.get(key) != value:
                raise UserError(
                    f"{path}: its runs have {key} = {before.get(key)}, these have {value}; they "
                    "cannot be compared: give another --out, or remove the file"
                )

    def add(self, recipe: Recipe, runs: Iterable[Run]) -> None:
        """Add runs of a recipe; they replace those of equal label and seed.

        Runs of a recipe whose settings have changed since are removed.
        """
        name, settings = recipe.name, recipe.settings
        if self.recipes.get(name, {}).get("settings", settings) != settings:
            self.runs = [run for run in self.runs if run["recipe"] != name]
        file = recipe.file.resolve()
        shown = file.relative_to(ROOT) if file.is_relative_to(ROOT) else file
        self.recipes[name] = {"file": str(shown), "about": recipe.about, "settings": settings}
        new = list(runs)
        keys = [(run["label"], run["seed"]) for run in new]
        self.runs = [r for r in self.runs if (r["label"], r["seed"]) not in keys] + new

    def to_dict(self) -> dict[str, Any]:
        """Return what the JSON holds beside the table."""
        return {"setup": self.setup, "recipes": self.recipes, "runs": self.runs}

    def standings(self) -> list[Standing]:
        """Return all recipes by their Fréchet distance, the lowest first, diverged ones last."""
        by_label: dict[str, list[Run]] = {}
        for run in self.runs:
            by_label.setdefault(run["label"], []).append(run)
        found = []
        for label, runs in by_label.items():
            recipe = self.recipes[runs[0]["recipe"]]
            is_dropped = not (ROOT / recipe["file"]).exists()
            found.append(Standing(label, sorted(runs, key=lambda r: int(r["seed"])), is_dropped))
        return sorted(found, key=lambda s: s.distance)


@dataclass(frozen=True)
class Standing:
    """The runs of one recipe, in order of their seeds; `dropped` = its YAML is gone."""

    label: str
    runs: list[Run]
    dropped: bool = False

    @property
    def finished(self) -> list[Run]:
        """Runs that reached their end and were judged there."""
        return [run for run in self.runs if not run["diverged"] and run["points"]]

    def ends(self, key: str) -> list[float]:
        """Return a metric at the end of each finished run; runs without it are left out."""
        values = (run["points"][-1].get(key) for run in self.finished)
        return [float(value) for value in values if value is not None]

    def mean(self, key: str) -> float | None:
        """Return the mean of `ends`, or None if there are none."""
        values = self.ends(key)
        return sum(values) / len(values) if values else None

    @property
    def distance(self) -> float:
        """Mean Fréchet distance at the end; infinite if no run finished, or if one diverged."""
        value = self.mean("frechet_distance")
        return math.inf if value is None or len(self.finished) < len(self.runs) else value

    @property
    def curve(self) -> list[dict[str, Any]]:
        """Points of the run with most of them, the first seed among equals; empty without runs."""
        return max((run["points"] for run in self.finished), key=len, default=[])
