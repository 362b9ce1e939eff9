"""Run the study of docs/study.md: what trainings learn from images, captions, perturbations.

    python research/study/run.py  # all runs of research/study/study.yaml: hours
    python research/study/run.py pairs_short --seeds 0      # one recipe, one seed
    python research/tables.py                       # then: write the tables of docs/study.md

Needs the demo's data, and the embeddings of its captions and test faces (docs/study.md). A recipe
is a YAML file of configs/demo/study, or one beside the list of runs. All trainings take equal
processor seconds. Other sets of faces and captions, and priors, are made when a recipe needs them
(research/study/material.py). Each run is judged on held-out captions and short sentences.

This command, started again, goes on where it was stopped. The figures of each run are added to the
JSON file of --out.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

# First: from here on, Ctrl-C ends the script with one line.
from utils.base.errors import UserError
from utils.base.script import one_line_errors

# isort: split
from pydantic import BaseModel, ConfigDict, PositiveFloat, PositiveInt

from benchmarks.timing import add_arguments, report, start
from research.recipes.evaluation import Evaluation, add_evaluation_arguments
from research.recipes.measure import Plan, measure
from research.recipes.recipe import Recipe, read_recipes
from research.recipes.results import Results
from research.recipes.table import notes, study_rows
from research.recipes.trainings import Costs, unit
from research.study.material import prepare
from utils.base.errors import refusing
from utils.base.locks import FolderLock
from utils.config.command_line import HelpFormatter
from utils.config.parsing import parse_seeds
from utils.config.yaml_files import load_yaml
from utils.pretrained.checkpoint_files import list_checkpoints

RUNS = Path(__file__).with_name("study.yaml")
RUNS_WIDE = RUNS.with_name("study_wide.yaml")
RECIPES = ROOT / "configs" / "demo" / "study"
TITLE = "Study on the demo: trainings of equal time"


class Table(BaseModel):
    """A table of the page: names of recipes, and the seeds of their trainings, e.g. `0,1,2`."""

    model_config = ConfigDict(extra="forbid")

    recipes: list[str]
    seeds: str


class Study(BaseModel):
    """The file research/study/study.yaml.

    seconds: of each training. pictures: held-out captions that are drawn. starts: recipe -> the
    recipe from whose network of seed 0 its trainings start.
    """

    model_config = ConfigDict(extra="forbid")

    seconds: PositiveFloat
    pictures: PositiveInt
    tables: dict[str, Table]
    starts: Mapping[str, str] = {}

    @property
    def names(self) -> list[str]:
        """Return the names of all recipes, once each, in order."""
        return list(dict.fromkeys(name for t in self.tables.values() for name in t.recipes))

    def seeds(self, name: str) -> list[int]:
        """Return all seeds that the tables want of a recipe."""
        tables = [table for table in self.tables.values() if name in table.recipes]
        return sorted({seed for table in tables for seed in parse_seeds(table.seeds)})


def read_study(file: Path = RUNS) -> Study:
    """Read the list of runs; raise UserError if it is damaged."""
    with refusing(f"{file}: not readable as the runs of a study"):
        return Study.model_validate(load_yaml(file.read_text(encoding="utf-8")))


class Runs:
    """All that the runs of a study share."""

    def __init__(self, study: Study, args: argparse.Namespace) -> None:
        """Read the recipes and load the jury; raise UserError for what is missing."""
        self.study, self.args = study, args
        self.recipes = {
            r.name: r for r in read_recipes([recipe_file(n, args.runs) for n in study.names])
        }
        first = next(iter(self.recipes.values()))
        prepare(_networks(first), args.data)
        self.evaluation = Evaluation(first.config, args.data, study.pictures, args.evaluator)
        setup = {"seconds": study.seconds, "unit": unit(), **self.evaluation.identity}
        self.results, self.costs = Results(args.out, setup), Costs(args.work)

    def run(self, name: str, seed: int) -> None:
        """Train a recipe with a seed and judge it, from where that was stopped."""
        recipe, others = self.recipes[name], list(self.recipes.values())
        prepare(_databases(recipe), self.args.data)
        training = next(
            other
            for other in others
            if recipe.trains_like(other)
            and self.study.starts.get(name) == self.study.starts.get(other.name)
        )
        plan = Plan(
            recipe,
            seed,
            self.costs.steps(training, others, self.study.seconds),
            self._folder(training.name, seed),
            1,
            training,
            start=self._start(name),
        )
        self.results.add(recipe, measure(plan, self.evaluation))
        rows, remarks = study_rows(self.results), notes(self.results)
        report(self.args.out, TITLE, rows, remarks, data=self.results.to_dict())

    def _folder(self, name: str, seed: int) -> Path:
        return Path(self.args.work / name / f"{self.study.seconds:g}s_seed{seed}")

    def _start(self, name: str) -> Path | None:
        """Return the released weights from which a recipe starts; train and export them first."""
        if name not in self.study.starts:
            return None
        other = self.study.starts[name]
        released = self.args.work / other / "start.safetensors"
        if not released.exists():
            self.run(other, 0)
            checkpoints = list_checkpoints(self._folder(other, 0) / "checkpoints")
            last = checkpoints[max(checkpoints)]
            command = ["train_latent_t2f.py", "--export", str(released), "--ckpt_path", str(last)]
            if subprocess.run([sys.executable, *command], cwd=ROOT, check=False).returncode:
                raise UserError(f"{last}: could not be exported; the lines above say why")
        return released


def recipe_file(name: str, runs: Path) -> Path:
    """Return the YAML of a recipe: beside the list `runs`, or one of the project's.

    Raises UserError if there is none.
    """
    folders = (runs.parent, RECIPES, RECIPES.parent / "recipes")
    for file in (folder / f"{name}.yaml" for folder in folders):
        if file.is_file():
            return file
    places = ", ".join(str(folder) for folder in folders)
    raise UserError(f"{runs}: there is no {name}.yaml in {places}")


def _networks(recipe: Recipe) -> list[Path]:
    """Return what the jury reads: the CLIP, and statistics of its features."""
    clip, reference = recipe.config.encoders.clip, recipe.config.eval.ref_path
    return [Path(path) for path in (clip, reference) if path is not None]


def _databases(recipe: Recipe) -> list[Path]:
    data, prior = recipe.config.data, recipe.config.encoders.prior
    return [Path(path) for path in (data.root, data.feat_path, prior) if path is not None]


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("recipes", nargs="*", metavar="RECIPE", help="recipes to run; None = all")
    parser.add_argument(
        "--seeds", help="seeds of the trainings, e.g. 0,1; None = those of the list"
    )
    parser.add_argument("--runs", type=Path, default=RUNS, metavar="YAML", help="list of all runs")
    parser.add_argument(
        "--work", type=Path, default=Path("results/study"), help="folder of the trainings"
    )
    add_evaluation_arguments(parser)
    add_arguments(parser)
    parser.set_defaults(out=Path("docs/benchmarks/study.json"))
    return parser.parse_intermixed_args()


@one_line_errors
def main() -> None:
    """Run all that is missing, in the folder --work, which one process at a time may use."""
    args = parse_args()
    start(args)
    study = read_study(args.runs)
    if unknown := [name for name in args.recipes if name not in study.names]:
        raise UserError(
            f"{', '.join(unknown)}: not in {args.runs}; it has {', '.join(study.names)}"
        )
    args.work.mkdir(parents=True, exist_ok=True)
    with FolderLock(args.work, "study"):
        runs = Runs(study, args)
        for name in args.recipes or study.names:
            for seed in parse_seeds(args.seeds) if args.seeds else study.seeds(name):
                runs.run(name, seed)


if __name__ == "__main__":
    main()
