"""Values of command-line flags: from text to Python, with one clear line for a mistake."""

from __future__ import annotations

import math
import os
import re
from pathlib import Path

from utils.base.errors import UserError


def none_or_text(text: str) -> str | None:
    """None for the word None, else the text itself, which the config's types convert."""
    return None if text == "None" else text


def path_or_none(text: str) -> Path | None:
    """Type of a flag that names a file or folder."""
    return None if text == "None" else Path(os.path.expanduser(text))


def step_or_none(text: str) -> int | None:
    """Type of a flag that names a training step; raises UserError if it is none."""
    if text == "None":
        return None
    if not text.isdigit():
        raise UserError(f"step {text!r}: should be a whole number or None")
    return int(text)


def true_or_false(text: str) -> bool:
    """Type of a flag in the published style, `--flag False`; raises UserError for other words."""
    word = text.lower()
    if word not in ("true", "yes", "1", "false", "no", "0"):
        raise UserError(f"{text!r}: should be True or False")
    return word in ("true", "yes", "1")


MOST_SEEDS = 10_000_000  # in one list; more is a slip of the pen


def parse_seeds(text: str) -> list[int]:
    """Seeds of a list such as '0-63,100', each once, in the order given; UserError otherwise."""
    seeds: dict[int, None] = {}
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)(?:\s*-\s*(\d+))?\s*", part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if not first <= last < 2**32 or last - first >= MOST_SEEDS:
            raise UserError(f"seeds {text!r}: should look like 0-63,100, each below 2^32")
        seeds.update(dict.fromkeys(range(first, last + 1)))
    return list(seeds)


def parse_scale(text: str) -> float | None:
    """A guidance scale, or None for 'None' (conditional only); UserError otherwise."""
    if text.strip().lower() in ("none", "null"):
        return None
    try:
        scale = float(text)
    except ValueError:
        scale = math.nan
    if not math.isfinite(scale):
        raise UserError(f"guidance scale {text!r}: should be a number or None")
    return scale
