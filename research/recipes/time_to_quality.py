"""Compare how fast recipes of training learn, in equal time: the demo's network and faces.

    python research/recipes/time_to_quality.py                      # all of configs/demo/recipes
    python research/recipes/time_to_quality.py --recipes configs/demo/recipes/today.yaml NEW.yaml
    python research/recipes/time_to_quality.py --seeds 0,1,2 \\
        --out docs/benchmarks/time_to_quality.json --plot docs/time_to_quality.png

Needs the data of `make demo`. A recipe is a YAML file; docs/recipes.md says how to add one. Short
trainings measure what its steps cost, and it gets the number of steps that fits into --seconds:
processor seconds, or wall-clock seconds on a GPU. At equal intervals its averaged weights draw
pictures from held-out captions, which are judged: Fréchet distance with an interval, stated
attributes that are shown, recall; and the loss of held-out faces is taken.

This command, started again, goes on where it was stopped, and adds to the file of --out. Recipes
whose YAML is gone stay in it, marked as dropped.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

# First: from here on, Ctrl-C ends the script with one line.
from utils.base.errors import UserError
from utils.base.script import one_line_errors

# isort: split
from benchmarks.timing import add_arguments, report, start
from research.recipes.evaluation import Evaluation, add_evaluation_arguments
from research.recipes.measure import Plan, measure
from research.recipes.plot import draw
from research.recipes.recipe import read_recipes
from research.recipes.results import Results
from research.recipes.table import notes, rows
from research.recipes.trainings import Costs, steps_within, unit
from utils.base.locks import FolderLock
from utils.config.command_line import HelpFormatter
from utils.config.parsing import parse_seeds

RESULTS = Path("results/time_to_quality")
TITLE = "Time to quality on the demo: recipes at equal time"


def parse_args() -> argparse.Namespace:
    """Read the command line; raise UserError for numbers that make no sense."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument(
        "--recipes",
        type=Path,
        nargs="+",
        default=[],
        metavar="YAML",
        help="recipes to measure; None = all of configs/demo/recipes",
    )
    parser.add_argument("--seeds", default="0", help="seeds of the trainings, e.g. 0,1,2")
    parser.add_argument("--seconds", type=float, default=400, help="training time of each run")
    parser.add_argument(
        "--points",
        type=int,
        default=4,
        help="checkpoints that are judged with the first seed; others are judged at the end",
    )
    parser.add_argument("--num", type=int, default=500, help="held-out captions that are drawn")
    parser.add_argument(
        "--not_averaged",
        nargs="*",
        default=["published"],
        metavar="NAME",
        help="recipes that are judged without averaging their weights too; the published average "
        "is still close to the random start",
    )
    parser.add_argument("--work", type=Path, default=RESULTS, help="folder of the trainings")
    add_evaluation_arguments(parser)
    parser.add_argument(
        "--plot", type=Path, metavar="PNG", help="plot to write; None = beside the file of --out"
    )
    add_arguments(parser)
    parser.set_defaults(out=RESULTS / "time_to_quality.json")
    args = parser.parse_args()
    for name in ("seconds", "points", "num"):
        if getattr(args, name) <= 0:
            raise UserError(f"--{name} must be above 0, not {getattr(args, name)}")
    return args


def compare(args: argparse.Namespace) -> None:
    """Measure what steps cost, then train and judge run by run; table and plot grow with each."""
    recipes, seeds = read_recipes(args.recipes), parse_seeds(args.seeds)
    evaluation = Evaluation(recipes[0].config, args.data, args.num, args.evaluator)
    setup = {"seconds": args.seconds, "unit": unit(), **evaluation.identity}
    results = Results(args.out, setup)
    picture = args.plot or args.out.with_suffix(".png")
    # Recipes that differ in their pictures alone share the training of the first of them.
    trainings = {r.name: next(o for o in recipes if r.trains_like(o)) for r in recipes}
    costs = Costs(args.work).measure([r for r in recipes if trainings[r.name] is r])
    for recipe in recipes:
        cost = costs[trainings[recipe.name].name]
        print(f"{recipe.name}: {steps_within(args.seconds, cost)} steps of {cost:.3g} {unit()}")
    for seed in seeds:
        for recipe in recipes:
            training = trainings[recipe.name]
            is_raw_too = recipe.name in args.not_averaged
            plan = Plan(
                recipe,
                seed,
                steps_within(args.seconds, costs[training.name]),
                args.work / training.name / f"{args.seconds:g}s_seed{seed}",
                args.points,
                training,
                ("ema", "model") if is_raw_too else ("ema",),
                curve=seed == seeds[0],
            )
            results.add(recipe, measure(plan, evaluation))
            report(args.out, TITLE, rows(results), notes(results), data=results.to_dict())
            draw(results, picture)
    print(f"plot: {picture}")


@one_line_errors
def main() -> None:
    """Compare recipes in the folder --work, which one process at a time may use."""
    args = parse_args()
    start(args)
    args.work.mkdir(parents=True, exist_ok=True)
    with FolderLock(args.work, "comparison"):
        compare(args)


if __name__ == "__main__":
    main()
