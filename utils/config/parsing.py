"""Values of command-line flags: from text to Python, with one clear line for a mistake."""

from __future__ import annotations

import math
import os
import re
from pathlib import Path

from utils.base.errors import UserError

MOST_SEEDS = 10_000_000  # in one range; a longer one is a slip of the pen


def text_or_none(text: str) -> str | None:
    """Return None for the word None, and any other text unchanged."""
    return None if text == "None" else text


def path_or_none(text: str) -> Path | None:
    """Return the path of a file or folder, or None for the word None; `~` is expanded."""
    return None if text == "None" else Path(os.path.expanduser(text))


def step_or_none(text: str) -> int | None:
    """Return a training step, or None for the word None; raise UserError for other texts."""
    if text == "None":
        return None
    if not text.isdigit():
        raise UserError(f"step {text!r}: should be a whole number or None")
    return int(text)


def true_or_false(text: str) -> bool:
    """Return the value of a flag in the published style, `--flag False`.

    Raise UserError for words that mean neither true nor false.
    """
    word = text.lower()
    if word not in ("true", "yes", "1", "false", "no", "0"):
        raise UserError(f"{text!r}: should be True or False")
    return word in ("true", "yes", "1")


def parse_seeds(text: str) -> list[int]:
    """Return the seeds of a list, e.g. '0-63,100', each once and in the order given.

    Raise UserError for other texts, seeds of 2^32 and above, and ranges of over MOST_SEEDS seeds.
    """
    seeds: dict[int, None] = {}
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)(?:\s*-\s*(\d+))?\s*", part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if not first <= last < 2**32 or last - first >= MOST_SEEDS:
            raise UserError(f"seeds {text!r}: should look like 0-63,100, each below 2^32")
        seeds.update(dict.fromkeys(range(first, last + 1)))
    return list(seeds)


def parse_scale(text: str) -> float | None:
    """Return a guidance scale, or None for the word None, which means the condition alone.

    Raise UserError for other texts.
    """
    if text.strip().lower() in ("none", "null"):
        return None
    try:
        scale = float(text)
    except ValueError:
        scale = math.nan
    if not math.isfinite(scale):
        raise UserError(f"guidance scale {text!r}: should be a number or None")
    return scale
