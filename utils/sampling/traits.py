"""Traits of a face that `vary` knows by name, with the sentences that a name stands for."""

from collections.abc import Sequence

PERSON = "a person"  # whom a phrase adds something to
TRAITS = {
    "age": ["a young person", "a middle-aged person", "an old person"],
    "expression": ["a smiling person", "a sad person", "an angry person", "a surprised person"],
    "facial hair": [f"{PERSON} with {text}" for text in ("no beard", "a moustache", "a beard")],
    "glasses": [f"{PERSON} with {text}" for text in ("no glasses", "round glasses", "sunglasses")],
    "hair": [
        f"{PERSON} with {text}" for text in ("short hair", "long hair", "curly hair", "an afro")
    ],
    "hair colour": [
        f"{PERSON} with {colour} hair" for colour in ("black", "brown", "blond", "red", "grey")
    ],
    "headwear": [f"{PERSON} with {text}" for text in ("a bare head", "a hat", "a turban")],
}


def varied(texts: Sequence[str]) -> list[str]:
    """Return sentences as they are, and for each name of a trait its sentences."""
    known = [TRAITS.get(text.strip().lower().replace("color", "colour")) for text in texts]
    return [s for text, listed in zip(texts, known, strict=True) for s in listed or [text]]
