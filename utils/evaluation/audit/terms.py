"""Words of captions: which ones an audit asks for, and which images they are said of."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from functools import lru_cache

import torch
from torch import Tensor

WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")
# Words that stand in captions of any face, and say nothing that an image shows.
STOP_WORDS = (
    "a an the and or but of with in on at to by for from as is are was be has have having who that "
    "which this it its her his their he she they him them there one some very any into out up over "
    "person people someone face portrait photo photograph picture image wearing wears showing "
    "shows looking looks"
)
EMPTY = frozenset(STOP_WORDS.split())
NEGATIONS = frozenset(("no", "not", "without", "never"))
LEAST, MOST_OFTEN = 5, 0.5  # images of a word: this many, and at most this fraction of all
SAME = 0.95  # fraction of a word's images from which on a pair of words says no more than it
MOST_TERMS = 200
Phrase = tuple[str, ...]


def words_of(text: str) -> list[str]:
    """Return the words of a text in lower case; a hyphen or an apostrophe joins."""
    return WORD.findall(text.casefold())


@lru_cache(maxsize=100_000)
def phrases_of(text: str) -> tuple[Phrase, ...]:
    """Cut a text at words that say nothing: "a man with red hair" → (man), (red, hair).

    What is negated is one word: "a person without red hair" → (without red hair).
    """
    found: list[list[str]] = [[]]
    for word in words_of(text):
        if word in EMPTY or word in NEGATIONS:
            found.append([word] if word in NEGATIONS else [])
        else:
            found[-1].append(word)
    return tuple(
        (" ".join(phrase),) if phrase[0] in NEGATIONS else tuple(phrase)
        for phrase in found
        if phrase
    )


def terms_in(text: str) -> set[str]:
    """Return the words of a caption, and its pairs of neighbouring words, that say something."""
    phrases = phrases_of(text)
    pairs = (pair for phrase in phrases for pair in zip(phrase, phrase[1:], strict=False))
    return {word for phrase in phrases for word in phrase} | {" ".join(pair) for pair in pairs}


def common_terms(captions: Sequence[Sequence[str]]) -> dict[str, Tensor]:
    """Return words and pairs of words of images' captions, the most frequent first.

    Each comes with (N,) bool, True for the images of which a caption says it. Left out: those of
    fewer than LEAST images or of more than half of them, and pairs that say no more than a word.
    """
    per_image = [{term for text in lines for term in terms_in(text)} for lines in captions]
    counts = Counter(term for terms in per_image for term in terms)
    most = MOST_OFTEN * sum(bool(lines) for lines in captions)

    def says_more(pair: str) -> bool:
        parts = pair.split(" ")
        return len(parts) == 1 or all(
            counts[pair] < SAME * counts[word] for word in parts if word in counts
        )

    kept = [term for term, n in counts.items() if LEAST <= n <= most and says_more(term)]
    chosen = sorted(kept, key=lambda term: (-counts[term], term))[:MOST_TERMS]
    return {term: torch.tensor([term in terms for terms in per_image]) for term in chosen}


def said_of(text: str, captions: Sequence[Sequence[str]]) -> Tensor:
    """Return the images of which one caption says all phrases of a text, (N,) bool."""
    wanted = phrases_of(text)

    def says(caption: str) -> bool:
        phrases = phrases_of(caption)
        return bool(wanted) and all(any(map(_holds(part), phrases)) for part in wanted)

    return torch.tensor([any(map(says, lines)) for lines in captions], dtype=torch.bool)


def _holds(part: Phrase) -> Callable[[Phrase], bool]:
    """Return a test if a phrase holds the words of `part` side by side."""
    size = len(part)
    return lambda phrase: any(phrase[i : i + size] == part for i in range(len(phrase)))
