"""The worlds in which recipes are compared: rendered faces, and photographs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import research.photos.material
import research.study.material
from benchmarks.timing import ROOT
from research.recipes.avatars import AvatarEvaluation
from research.recipes.evaluation import Evaluation
from research.recipes.photos import PhotoEvaluation
from utils.config.schema import Config

WorldName = Literal["avatars", "photos"]


@dataclass(frozen=True)
class World:
    """Images with captions, their recipes, and what is measured with them.

    data: folder of the images and of what is made from them.
    recipes: folders of recipes.
    prepare: makes what recipes name below `data`.
    evaluation: (config, data, images, images of each sentence or None for the usual number, file
    of the avatars' classifier) -> the evaluation.
    """

    data: Path
    recipes: tuple[Path, ...]
    prepare: Callable[[Iterable[Path], Path], None]
    evaluation: Callable[[Config, Path, int, int | None, Path], Evaluation]


def _photo_evaluation(
    config: Config, data: Path, images: int, seeds: int | None, _: Path
) -> Evaluation:
    return PhotoEvaluation(config, data, images, seeds)


def _recipes(name: str) -> tuple[Path, ...]:
    return tuple(ROOT / "configs" / name / kind for kind in ("recipes", "study"))


WORLDS: dict[WorldName, World] = {
    "avatars": World(
        Path("data/demo"), _recipes("demo"), research.study.material.prepare, AvatarEvaluation
    ),
    "photos": World(
        Path("data/photos"), _recipes("photos"), research.photos.material.prepare, _photo_evaluation
    ),
}
