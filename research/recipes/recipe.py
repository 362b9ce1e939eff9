"""Recipes: configs that are compared, a YAML file each. docs/recipes.md says how to add one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.base.errors import UserError
from utils.config.load import load_config
from utils.config.schema import Config
from utils.config.yaml_files import get_value

# Sections that make a recipe; `eval` and `log` change neither the training nor the images.
SECTIONS = ("data", "encoders", "model", "train", "sampling")
# Keys that change the images of a trained network, not its training.
OF_IMAGES = ("sampling.", "encoders.image_mean", "encoders.prior")
# Keys that change neither the size of the network nor the work of a step.
OF_DATA = (*OF_IMAGES, "data.", "encoders.", "train.perturbation")
SET_BY_US = ("train.max_num_steps", "train.epochs", "train.seed")
# Keys in which all recipes agree: otherwise their metrics could not be compared.
SHARED = (
    "data.resolution",
    "encoders.vae",
    "encoders.clip",
    "encoders.scale_factor",
    "encoders.precision",
    "eval.ref_path",
    "eval.feature_network",
)


@dataclass(frozen=True)
class Recipe:
    """A config that takes part, and its name: that of its file."""

    name: str
    file: Path
    config: Config
    about: str = ""  # comment at the head of the file

    @property
    def settings(self) -> dict[str, Any]:
        """Return `section.key` -> plain value of all settings that differ from the defaults."""
        ours, defaults = self.config.to_dict(), Config().to_dict()
        return {
            f"{section}.{key}": value
            for section in SECTIONS
            for key, value in ours[section].items()
            if value != defaults[section][key] and f"{section}.{key}" not in SET_BY_US
        }

    def trains_like(self, other: Recipe) -> bool:
        """Return True if both recipes train equal networks, so that one training serves both."""
        return self._agrees(other, OF_IMAGES)

    def costs_like(self, other: Recipe) -> bool:
        """Return True if a step of both costs the same: equal networks and optimizers."""
        return self._agrees(other, OF_DATA)

    def _agrees(self, other: Recipe, apart_from: tuple[str, ...]) -> bool:
        """Return True if all settings agree but those whose keys begin with one of `apart_from`."""
        ours, theirs = (
            {k: v for k, v in recipe.settings.items() if not k.startswith(apart_from)}
            for recipe in (self, other)
        )
        return ours == theirs


def read_recipe(file: Path) -> Recipe:
    """Read the recipe of a YAML file; raise UserError with all its faults."""
    config = load_config(file, require=("eval.ref_path",))
    head = []
    for line in file.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        head.append(line.removeprefix("#").strip())
    return Recipe(file.stem, file, config, " ".join(head))


def read_recipes(files: Sequence[Path]) -> dict[str, Recipe]:
    """Read recipes by name; raise UserError if they disagree in a key of SHARED."""
    recipes = {file.stem: read_recipe(file) for file in files}
    first, *others = recipes.values()
    for recipe in others:
        for key in SHARED:
            ours, theirs = (get_value(r.config.to_dict(), key) for r in (recipe, first))
            if ours != theirs:
                raise UserError(
                    f"{recipe.file}: {key} is {ours}, but {first.file} has {theirs}; metrics can "
                    "only be compared if all recipes agree in it"
                )
    return recipes
