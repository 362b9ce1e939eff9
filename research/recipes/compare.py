"""Train recipes for equal time and compare their networks: docs/recipes.md and docs/study.md.

    python research/recipes/compare.py research/recipes/recipes.yaml --threads 1
    python research/recipes/compare.py research/study/study.yaml --threads 1      # all runs: hours
    python research/recipes/compare.py research/study/study.yaml pairs_short --seeds 0
    python research/recipes/compare.py research/recipes/recipes_photos.yaml --threads 1
    python research/tables.py                                  # then: write the tables of the docs

Needs the data of `make demo`; a list with `world: photos` needs the link that `make photos` makes.
A list of runs names recipes (YAML files beside it, or below configs/demo or configs/photos) and the
seeds of their trainings. Short trainings measure what a recipe's steps cost; it then gets the steps
that fit into equal time: processor seconds, or wall-clock seconds on a GPU, or the time of another
machine whose probes.json lie in --work. The averaged weights generate images of held-out captions
and of short sentences, which are evaluated. Databases, other sets of images and captions, and
priors are made when a recipe needs them (research/study/material.py, research/photos/material.py).

This command, started again, goes on where it was stopped, and adds to the JSON of --out.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

# First: from here on, Ctrl-C ends the script with one line.
from utils.base.errors import UserError
from utils.base.script import one_line_errors

# isort: split
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt

from benchmarks.timing import report, start
from research.attributes.classifier import add_classifier_file
from research.recipes.recipe import Recipe, read_recipes
from research.recipes.results import Results
from research.recipes.training import Costs, Plan, measure
from research.recipes.worlds import WORLDS, World, WorldName
from utils.base.errors import refusing
from utils.base.locks import FolderLock
from utils.config.command_line import ArgumentParser
from utils.config.parsing import parse_seeds
from utils.config.yaml_files import load_yaml


class RunList(BaseModel):
    """A list of runs.

    world: avatars, rendered faces, or photos. seconds: of each training. images: held-out captions
    to generate. sentence_images: of each short sentence; None = 24 of avatars, 8 of photographs.
    seeds: recipe -> seeds of its trainings. starts: recipe -> the recipe from whose network of seed
    0 its trainings start.
    """

    model_config = ConfigDict(extra="forbid")

    world: WorldName = "avatars"
    seconds: PositiveFloat
    images: PositiveInt
    sentence_images: Annotated[int, Field(ge=2)] | None = None
    seeds: Mapping[str, list[int]]
    starts: Mapping[str, str] = {}


def read_run_list(file: Path) -> RunList:
    """Read a list of runs; raise UserError if it is damaged."""
    with refusing(f"{file}: not readable as a list of runs"):
        return RunList.model_validate(load_yaml(file.read_text(encoding="utf-8")))


def recipe_file(name: str, runs: Path, world: World = WORLDS["avatars"]) -> Path:
    """Return the YAML of a recipe: beside the list `runs`, or one of the world's.

    Raises UserError if there is none.
    """
    folders = (runs.parent, *world.recipes)
    for file in (folder / f"{name}.yaml" for folder in folders):
        if file.is_file():
            return file
    places = ", ".join(str(folder) for folder in folders)
    raise UserError(f"{runs}: there is no {name}.yaml in {places}")


class Comparison:
    """The recipes, data and evaluation of the runs of a list."""

    def __init__(self, runs: RunList, args: argparse.Namespace) -> None:
        """Read the recipes and load the evaluation; raise UserError for what is missing."""
        self.runs, self.args, self.world = runs, args, WORLDS[runs.world]
        self.data: Path = args.data or self.world.data
        files = [recipe_file(name, args.runs, self.world) for name in runs.seeds]
        self.recipes = read_recipes(files)
        config = next(iter(self.recipes.values())).config
        self.evaluation = self.world.evaluation(
            config, self.data, runs.images, runs.sentence_images, args.classifier
        )
        self.costs = Costs(args.work)
        setup = {"seconds": runs.seconds, "unit": self.costs.unit, **self.evaluation.identity}
        setup["sentence_images"] = runs.sentence_images
        self.results = Results(args.out, setup)

    def plan(self, name: str, seed: int) -> Plan:
        """Return the run of a recipe with a seed. Recipes that train alike have one training."""
        recipe, starts = self.recipes[name], self.runs.starts
        training = next(
            other
            for other in self.recipes.values()
            if recipe.trains_like(other) and starts.get(name) == starts.get(other.name)
        )
        steps = self.costs.steps(training, list(self.recipes.values()), self.runs.seconds)
        folder = self.args.work / training.name / f"{self.runs.seconds:g}s_seed{seed}"
        return Plan(recipe, seed, steps, folder, training, self._start(name))

    def run(self, name: str, seed: int) -> None:
        """Train a recipe with a seed and evaluate it, from where that was stopped."""
        recipe = self.recipes[name]
        self.world.prepare(_databases(recipe), self.data)
        self.results.add(recipe, measure(self.plan(name, seed), self.evaluation))
        rows, notes = self.results.rows(), self.results.notes()
        title = f"Trainings of equal time: {self.args.runs.stem}"
        report(self.args.out, title, rows, notes, data=self.results.to_dict())

    def _start(self, name: str) -> Path | None:
        """Return the released weights from which a recipe starts; train and export them first."""
        if name not in self.runs.starts:
            return None
        other = self.runs.starts[name]
        released = Path(self.args.work / other / "start.safetensors")
        if not released.exists():
            self.run(other, 0)
            last = self.plan(other, 0).checkpoint
            command = ["train_latent_t2f.py", "--export", str(released), "--ckpt_path", str(last)]
            if subprocess.run([sys.executable, *command], cwd=ROOT, check=False).returncode:
                raise UserError(f"{last}: could not be exported; the lines above say why")
        return released


def _databases(recipe: Recipe) -> list[Path]:
    data, prior = recipe.config.data, recipe.config.encoders.prior
    paths = (data.root, data.feat_path, data.patch_feat_path, prior)
    return [Path(path) for path in paths if path is not None]


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path, metavar="LIST", help="YAML file, the list of runs")
    parser.add_argument("recipes", nargs="*", metavar="RECIPE", help="recipes to run; None = all")
    parser.add_argument("--seeds", help="seeds, e.g. 0,1; None = those of the list")
    parser.add_argument("--seconds", type=float, help="of each training; None = those of the list")
    parser.add_argument(
        "--work", type=Path, help="folder of the trainings; None = results/NAME of the list"
    )
    parser.add_argument(
        "--data", type=Path, help="folder of the images; None = data/demo or data/photos"
    )
    add_classifier_file(parser)
    parser.add_argument("--threads", type=int, default=2, help="processor cores to use")
    parser.add_argument("--out", type=Path, help="JSON to add to; None = results.json in --work")
    args = parser.parse_intermixed_args()
    if args.seconds is not None and not args.seconds > 0:
        raise UserError(f"--seconds must be above 0, not {args.seconds:g}")
    args.work = args.work or Path("results") / args.runs.stem
    args.out = args.out or args.work / "results.json"
    return args


@one_line_errors
def main() -> None:
    """Run all that is missing, in the folder --work, which one process at a time may use."""
    args = parse_args()
    start(args)
    runs = read_run_list(args.runs)
    if args.seconds:
        runs = runs.model_copy(update={"seconds": args.seconds})
    if unknown := [name for name in args.recipes if name not in runs.seeds]:
        raise UserError(f"{', '.join(unknown)}: not in {args.runs}; it has {', '.join(runs.seeds)}")
    args.work.mkdir(parents=True, exist_ok=True)
    with FolderLock(args.work, "comparison"):
        comparison = Comparison(runs, args)
        for name in args.recipes or runs.seeds:
            for seed in parse_seeds(args.seeds) if args.seeds else runs.seeds[name]:
                comparison.run(name, seed)


if __name__ == "__main__":
    main()
