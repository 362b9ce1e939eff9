"""The table of recipes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Sequence
from typing import Any

from research.recipes.results import Results, Standing

# Recipes whose final Fréchet distance the others have to reach; each gives a column.
TARGETS = ("published", "today")
NONE = "–"


def reached(curve: Sequence[dict[str, Any]], distance: float) -> float:
    """Return the seconds until a curve falls to a distance, inf if never; points are joined.

    A curve whose first point is below the distance gives the time of this point.
    """
    points = [(float(r["seconds"]), float(r["frechet_distance"])) for r in curve]
    if points and points[0][1] <= distance:
        return points[0][0]
    for (seconds, high), (later, low) in itertools.pairwise(points):
        if low <= distance:
            return seconds + (high - distance) / (high - low) * (later - seconds)
    return math.inf


def time_text(standing: Standing, target: float) -> str:
    """Return the time until the distance `target`, e.g. `130`, or `≤ 100` for the first point."""
    curve = standing.curve
    when = reached(curve, target)
    if math.isinf(when):
        return NONE
    return f"≤ {when:.0f}" if when == curve[0]["seconds"] else f"{when:.0f}"


def targets(standings: Sequence[Standing]) -> dict[str, float]:
    """Return name -> final distance of the recipes of TARGETS.

    The weights with the lower distance count, averaged or not.
    """
    found = {}
    for name in TARGETS:
        own = [s.distance for s in standings if s.runs[0]["recipe"] == name]
        if own and min(own) < math.inf:
            found[name] = min(own)
    return found


def rows(results: Results) -> list[dict[str, Any]]:
    """Return a row for each recipe, the best first; metrics are means over the seeds."""
    standings, unit = results.standings(), results.setup["unit"]
    goals = targets(standings)
    made = []
    for standing in standings:
        row: dict[str, Any] = {
            "recipe": standing.label + (" (dropped)" if standing.dropped else ""),
            "seeds": ", ".join(str(run["seed"]) for run in standing.runs),
            "steps": standing.runs[0]["steps"],
            unit: _rounded(standing.mean("seconds")),
            f"images / {unit}": _rate(standing),
            "Fréchet distance": _distance(standing),
            "95 %, pictures": _interval(standing),
            "seeds, lowest … highest": _spread(standing.ends("frechet_distance")),
            "attributes, %": _shown(standing, "attributes", ".1f"),
            "coarse, %": _shown(standing, "coarse", ".1f"),
            "recall": _shown(standing, "recall", ".3f"),
            "variety, of the data's": _shown(standing, "variety", ".2f"),
            "held-out loss": _shown(standing, "loss", ".4f"),
        }
        for name, distance in goals.items():
            row[f"{unit} to {distance:.0f} ({name})"] = time_text(standing, distance)
        made.append(row)
    return made


def study_rows(results: Results, names: Collection[str] | None = None) -> list[dict[str, Any]]:
    """Return a row for each recipe, the best first: means over the seeds, and their spread.

    names: the recipes; None = all.
    """
    return [
        {
            "recipe": standing.label,
            "seeds": len(standing.runs),
            "Fréchet distance": _with_spread(standing, "frechet_distance", ".1f"),
            "attributes of captions, %": _with_spread(standing, "attributes", ".1f"),
            "recall": _with_spread(standing, "recall", ".2f"),
            "variety": _with_spread(standing, "variety", ".2f"),
            "stated by short sentences, %": _with_spread(standing, "stated", ".1f"),
            "CLIP score": _with_spread(standing, "clip_score", ".1f"),
        }
        for standing in results.standings()
        if names is None or standing.label in names
    ]


def notes(results: Results) -> list[str]:
    """Return the sentences below the table."""
    setup, machines = results.setup, sorted({run["machine"] for run in results.runs})
    sentences = [
        f"Equal time for all recipes: {setup['seconds']:g} {setup['unit']} of training steps. "
        "Evaluation, checkpoints and start-up are not counted.",
        f"{setup['pictures']} pictures from held-out captions; pictures of all recipes start from "
        "equal noise. Values are means over the seeds of the training.",
        "95 %: bootstrap over the pictures of a run, first order; mean of the runs' limits. The "
        "spread over seeds comes on top; the next column shows it.",
        "Recall (Kynkäänniemi 2019): in the features of the Fréchet distance.",
        "Held-out loss: no mask, twelve noise levels from 0.05 to 20, equal noise and weights for "
        "all recipes.",
        "Time to a distance: on a straight line between two checkpoints. ≤: the first checkpoint "
        "has reached it. The learning rate of early checkpoints is still high.",
    ]
    if any(standing.dropped for standing in results.standings()):
        sentences.append("Dropped: tried, but no recipe any more. The JSON keeps its settings.")
    if len(machines) > 1:
        sentences.append(f"Times of several machines do not compare: {'; '.join(machines)}.")
    abouts = {name: recipe["about"] for name, recipe in results.recipes.items()}
    return sentences + [f"{name}: {about}" for name, about in sorted(abouts.items()) if about]


def _rounded(value: float | None) -> str:
    return NONE if value is None else f"{value:.0f}"


def _rate(standing: Standing) -> str:
    rates = [run["images_per_second"] for run in standing.finished]
    return f"{sum(rates) / len(rates):.0f}" if rates else NONE


def _distance(standing: Standing) -> str:
    """Return the mean distance of a standing; or how many of its runs diverged."""
    lost = len(standing.runs) - len(standing.finished)
    if lost:
        return "diverged" if lost == len(standing.runs) else f"{lost} diverged"
    return f"{standing.distance:.1f}"


def _interval(standing: Standing) -> str:
    low, high = (standing.mean(f"frechet_distance_{end}") for end in ("low", "high"))
    return NONE if low is None or high is None else f"{low:.1f} … {high:.1f}"


def _spread(values: Sequence[float]) -> str:
    return f"{min(values):.1f} … {max(values):.1f}" if len(values) > 1 else NONE


def _with_spread(standing: Standing, key: str, form: str) -> str:
    """Return `mean (lowest … highest)` of a metric over the seeds."""
    values = standing.ends(key)
    spread = f" ({min(values):{form}} … {max(values):{form}})" if len(values) > 1 else ""
    return _shown(standing, key, form) + spread


def _shown(standing: Standing, key: str, form: str) -> str:
    value = standing.mean(key)
    return NONE if value is None else format(value, form)
