"""Tools of the grammars that describe faces: choosing words, listing phrases, articles."""

import random
import re
from collections.abc import Sequence


def choose_word(words: Sequence[str], rng: random.Random) -> str:
    """Return the first, most common word half of the time, else any word."""
    return words[0] if rng.random() < 0.5 else rng.choice(words)


def enumerate_phrases(phrases: Sequence[str]) -> str:
    """Join phrases: `x`, `x and y`, `x, y and z`."""
    if len(phrases) == 1:
        return phrases[0]
    return ", ".join(phrases[:-1]) + " and " + phrases[-1]


def mend_articles(text: str) -> str:
    """Write `an` before vowels: `a oval face` becomes `an oval face`."""
    return re.sub(r"\b([aA]) (?=[aeio])", r"\1n ", text)
