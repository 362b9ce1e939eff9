"""Values of command-line flags: from text to Python, with one clear line for a mistake."""

from __future__ import annotations

import math
import os
import re
from pathlib import Path

from models.choices import SEED_LIMIT
from utils.base.errors import UserError, short_repr

MOST_SEEDS = 10_000_000  # in one range; a longer one is a slip of the pen
MOST_GUIDANCE = 1e6  # of either sign; beyond it float32 overflows to black images


def text_or_none(text: str) -> str | None:
    """Return None for the word None, and any other text unchanged."""
    return None if text == "None" else text


def path_or_none(text: str) -> Path | None:
    """Return the path of a file or folder, or None for the word None; `~` is expanded."""
    return None if text == "None" else Path(os.path.expanduser(text))


def folder_to_write(text: str) -> Path:
    """Return the path of a folder of results; raise UserError if a file is in its place."""
    if Path(text).is_file():
        raise UserError(f"{text}: is a file; name a folder (--out)")
    return Path(text)


def file_to_write(text: str) -> Path:
    """Return the path of a file of results; raise UserError if a folder is in its place."""
    if Path(text).is_dir():
        raise UserError(f"{text}: is a folder; name a file in it")
    return Path(text)


def step_or_none(text: str) -> int | None:
    """Return a training step, or None for the word None; raise UserError for other texts."""
    if text == "None":
        return None
    if not text.isdecimal():
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
        match = re.fullmatch(r"\s*(\d{1,20})(?:\s*-\s*(\d{1,20}))?\s*", part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if not first <= last < SEED_LIMIT or last - first >= MOST_SEEDS:
            raise UserError(f"seeds {short_repr(text)}: should look like 0-63,100, each below 2^32")
        seeds.update(dict.fromkeys(range(first, last + 1)))
    return list(seeds)


def parse_seed(text: str) -> int:
    """Return a seed; raise UserError for other texts, and for seeds of 2^32 and above."""
    if not re.fullmatch(r"\d{1,20}", text) or int(text) >= SEED_LIMIT:
        raise UserError(
            f"seed {short_repr(text)}: should be a whole number from 0 to {SEED_LIMIT - 1}"
        )
    return int(text)


def seeds_from(first: int, count: int) -> range:
    """Return `count` seeds from `first` on; raise UserError if they do not end below 2^32."""
    if not 0 <= first <= SEED_LIMIT - count:
        raise UserError(
            f"seeds {first} and the {count - 1} after it: should be whole numbers from 0 to "
            f"{SEED_LIMIT - 1}; begin with a lower seed"
        )
    return range(first, first + count)


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
    if not abs(scale) <= MOST_GUIDANCE:
        raise UserError(
            f"guidance scale {short_repr(text)}: should be a number or None, and a number at most "
            f"{MOST_GUIDANCE:g} of either sign"
        )
    return scale
