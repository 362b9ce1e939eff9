"""The record of `tools/tune.py`: which settings were tried on which data, and what they gave.

It lies beside the tuned network, as NAME.json beside NAME.safetensors; the model card shows it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from utils.base.errors import UserError
from utils.evaluation.metric_names import METRICS, distance_of, end_key, key_of
from utils.evaluation.results import Record

HEADER = ("guidance", "interval", "average", "freedom", "Fréchet distance", "CLIP score", "")


class Point(NamedTuple):
    """Settings that a tuning chooses. `width`: of the average; None = the EMA of the training."""

    cfg_scale: float | None
    guidance_interval: tuple[float, float] | None
    width: float | None
    freedom: float

    def sampling(self) -> dict[str, Any]:
        """Return the keys of the section `sampling`."""
        return {key: value for key, value in self._asdict().items() if key != "width"}

    def texts(self) -> tuple[str, str, str, str]:
        """Return the settings for a table."""
        scale, interval, width, freedom = self
        return (
            "none" if scale is None else f"{scale:g}",
            "all" if interval is None else f"{interval[0]:g} – {interval[1]:g}",
            "EMA" if width is None else f"{width:g}",
            f"{freedom:g}",
        )

    def text(self) -> str:
        """Return the settings as one phrase."""
        names = ("guidance", "interval", "average", "freedom")
        return ", ".join(f"{n} {t}" for n, t in zip(names, self.texts(), strict=True))


def point_of(values: dict[str, Any]) -> Point:
    """Return the settings in a record of JSON."""
    interval = values["guidance_interval"]
    return Point(**{**values, "guidance_interval": interval and tuple(interval)})


def _ends(record: Record) -> tuple[float, float]:
    """Return the ends of the interval of the Fréchet distance."""
    key = key_of("frechet_distance", record["network"])
    return record[end_key(key, "low")], record[end_key(key, "high")]


def figures(record: Record) -> tuple[str, str]:
    """Return Fréchet distance with its interval, and CLIP score, for a table."""
    low, high = _ends(record)
    show, score = METRICS["frechet_distance"].show, METRICS["clip_score"].show
    return (
        f"{show(distance_of(record))} ({show(low)} to {show(high)})",
        score(record.get("clip_score")),
    )


def table_rows(tuning: dict[str, Any]) -> list[Sequence[str]]:
    """Return a row below HEADER for each setting that was tried, in the order of the trials."""
    rows: list[Sequence[str]] = []
    for trial in tuning["trials"]:
        mark = ", ".join(n for n in ("before", "chosen") if trial["settings"] == tuning[n])
        rows.append((*point_of(trial["settings"]).texts(), *figures(trial["record"]), mark))
    return rows


def report_rows(tuning: dict[str, Any]) -> list[Sequence[str]]:
    """Return a row below HEADER for the settings before, and one for the chosen ones."""
    return [
        (*point_of(tuning[name]).texts(), *figures(tuning["report"][name]), name)
        for name in ("before", "chosen")
    ]


def sentences(tuning: dict[str, Any]) -> list[str]:
    """Say what chose the settings, on which data, and what that means for the figures."""
    images = tuning["images"]
    said = [
        f"{tuning['criterion']} chose them, one key after the other, on {images} images a setting "
        f"and {tuning['chosen_on']}."
    ]
    if tuning["average"] is not None:
        width, error, count = (tuning["average"][k] for k in ("width", "error", "snapshots"))
        said.append(
            f"The weights are a power-function average of relative width {width:g} (EDM2), made "
            f"from {count} snapshots with a relative error of {error:.2g}."
        )
    if not tuning["is_split"]:
        said.append(
            "The held-out images were too few for two halves: the figures are those of the data "
            "that chose the settings, and are therefore optimistic."
        )
        return said
    before, chosen = (distance_of(tuning["report"][name]) for name in ("before", "chosen"))
    verdict = f"{1 - chosen / before:.1%} lower" if chosen < before else "not lower"
    low, high = _ends(tuning["report"]["before"])
    if tuning["chosen"] == tuning["before"]:
        verdict = "the same settings"
    elif low <= chosen <= high:
        verdict += ", within the interval of the figure before: no proof of a gain"
    said.append(
        f"On {tuning['reported_on']}, which chose nothing, the Fréchet distance is {chosen:.4g} "
        f"with them and {before:.4g} before: {verdict}."
    )
    return said


def read_tuning(checkpoint: Path) -> dict[str, Any] | None:
    """Return the record beside a tuned network, None if there is none.

    Raises UserError if it cannot be read.
    """
    path = checkpoint.with_suffix(".json")
    if checkpoint.suffix != ".safetensors" or not path.is_file():
        return None
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        values["chosen"], values["trials"], values["report"]
    except (ValueError, KeyError, TypeError) as fault:
        raise UserError(f"{path}: is no record of tools/tune.py; delete it") from fault
    return dict(values)
