"""Compare what an audit measures of words with what trained networks show: rank correlations.

    python research/audit/check.py results/audit/audit.json shown.json
    python research/audit/check.py AUDIT docs/benchmarks/study_photos.json --recipe images_between
    python research/audit/check.py AUDIT docs/benchmarks/study_wide.json --recipe wide_pairs

AUDIT is the JSON of tools/audit.py with --words of the same sentences. The second file is that of
research/audit/shown.py, or one of research/recipes/compare.py, of which all trainings of a recipe
count: on photographs the rates of its sentences, on rendered faces those of attributes. An
attribute's figure is the mean over the sentences that state one of its values.
"""

from __future__ import annotations

import json
import math
import statistics
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

# First: from here on, Ctrl-C ends the script with one line.
from utils.base.errors import UserError
from utils.base.script import one_line_errors

# isort: split
import numpy as np
from scipy.stats import spearmanr

from research.audit.faces import sentences
from utils.base.text import aligned
from utils.config.command_line import ArgumentParser

FIGURES = ("auc", "agrees", "visible", "near", "images")
RESAMPLES = 2000
FEWEST = 3  # words of a correlation
Rates = dict[str, float]


def shown_rates(values: Mapping[str, Any], recipe: str | None) -> Rates:
    """Return the percentage of each sentence or attribute; UserError if there is no such recipe."""
    if recipe is None:
        return dict(values)
    runs = [run["metrics"] for run in values["runs"] if run["recipe"] == recipe]
    if not runs:
        raise UserError(f"--recipe: there is no {recipe} in this file")
    if "sentences" in runs[0]:
        runs = [{text: about["rate"] for text, about in run["sentences"].items()} for run in runs]
    else:
        runs = [run["shown"] for run in runs]
    return {key: statistics.fmean(run[key] for run in runs) for key in runs[0]}


def figures(words: list[dict[str, Any]], key: str, of_attributes: bool) -> Rates:
    """Return a figure of each word that has it, or its mean over the words of each attribute."""
    found = {word["text"]: float(word[key]) for word in words if word[key] is not None}
    if not of_attributes:
        return found
    groups: dict[str, list[float]] = {}
    for text, (name, _) in sentences().items():
        if text in found:
            groups.setdefault(name, []).append(found[text])
    return {name: statistics.fmean(group) for name, group in groups.items()}


def rank_correlation(x: np.ndarray, y: np.ndarray) -> tuple[float, float, float]:
    """Return Spearman's correlation of (N,) values, with its bootstrap interval of 95 %.

    All three are NaN for fewer than FEWEST values, or for values that are all equal.
    """
    if len(x) < FEWEST or not (np.ptp(x) and np.ptp(y)):
        return math.nan, math.nan, math.nan
    rng = np.random.default_rng(0)
    rows = (rng.integers(len(x), size=len(x)) for _ in range(RESAMPLES))
    samples = [spearmanr(x[r], y[r])[0] for r in rows if np.ptp(x[r]) and np.ptp(y[r])]
    low, high = np.quantile(samples, (0.025, 0.975))
    return float(spearmanr(x, y)[0]), float(low), float(high)


@one_line_errors
def main() -> None:
    """Print the correlation of each figure."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("audit", type=Path, help="audit.json")
    parser.add_argument("shown", type=Path, help="JSON of what networks show")
    parser.add_argument(
        "--recipe", help="recipe of the second file; None = of research/audit/shown.py"
    )
    args = parser.parse_args()
    words = json.loads(args.audit.read_text(encoding="utf-8"))["texts"]["given"]
    shown = shown_rates(json.loads(args.shown.read_text(encoding="utf-8")), args.recipe)
    of_attributes = not any(word["text"] in shown for word in words or [])
    most = 0
    rows = [["figure", "n", "rank correlation", "95 %"]]
    for key in FIGURES:
        found = figures(words or [], key, of_attributes)
        both = sorted(found.keys() & shown.keys())
        most = max(most, len(both))
        rho, low, high = rank_correlation(*(np.array([d[k] for k in both]) for d in (found, shown)))
        known = not math.isnan(rho)
        interval = f"{low:.2f} … {high:.2f}" if known else "–"
        rows.append([key, str(len(both)), f"{rho:.2f}" if known else "–", interval])
    if most < FEWEST:
        raise UserError(f"{args.audit}: {most} of its words are in {args.shown}; give --words")
    print(aligned(rows, left=1))


if __name__ == "__main__":
    main()
