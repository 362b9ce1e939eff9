"""The frames of free sentences: people and pronouns, beginnings, remarks, typing errors."""

from __future__ import annotations

import random
from dataclasses import dataclass

KEYS = {  # neighbours on a keyboard
    "a": "sq", "b": "vn", "c": "xv", "d": "sf", "e": "wr", "f": "dg", "g": "fh", "h": "gj",
    "i": "uo", "j": "hk", "k": "jl", "l": "k", "m": "n", "n": "bm", "o": "ip", "p": "o",
    "r": "et", "s": "ad", "t": "ry", "u": "yi", "v": "cb", "w": "qe", "x": "zc", "y": "tu",
}  # fmt: skip


@dataclass(frozen=True)
class Person:
    """How a text speaks of the face.

    nouns: "man", "guy". ages: adjectives that say nothing about an attribute.
    pronouns: s, p, o (she, her, her), and is, has, wears in the form that goes with s.
    """

    nouns: tuple[str, ...]
    ages: tuple[str, ...]
    pronouns: dict[str, str]

    def __getitem__(self, key: str) -> str:
        return self.pronouns[key]


def _pronouns(s: str, p: str, o: str, *verbs: str) -> dict[str, str]:
    return {"s": s, "p": p, "o": o} | dict(zip(("is", "has", "wears"), verbs, strict=True))


_AGES = ("young", "old", "elderly", "middle-aged", "old-looking", "young-looking", "little", "tall",
         "nice", "cool", "cartoon", "funny", "handsome", "stylish", "strange",
         "lovely")  # fmt: skip
_HE = _pronouns("he", "his", "him", "is", "has", "wears")
_SHE = _pronouns("she", "her", "her", "is", "has", "wears")
_THEY = _pronouns("they", "their", "them", "are", "have", "wear")
_IT = _pronouns("it", "its", "it", "is", "has", "wears")
_ONE = _pronouns("the person", "the", "the person", "is", "has", "wears")
_I = _pronouns("i", "my", "me", "am", "have", "wear")
_MEN = ("man", "guy", "boy", "fellow", "bloke", "gentleman", "dude", "lad", "grandpa", "chap",
        "male", "student", "uncle", "sailor", "professor", "hipster", "brother", "old man",
        "farmer", "pirate", "businessman", "grandfather", "father", "king", "waiter", "neighbour",
        "husband")  # fmt: skip
_WOMEN = ("woman", "lady", "girl", "female", "grandma", "gal", "lass", "student", "aunt", "nurse",
          "granny", "sister", "teacher", "old lady", "young woman", "mother", "grandmother",
          "librarian", "queen", "businesswoman", "neighbour", "wife", "daughter")  # fmt: skip
_ANY = ("person", "face", "someone", "portrait of a person", "character", "cartoon face", "avatar",
        "portrait", "cartoon character", "figure", "human", "individual", "somebody", "kid", "head",
        "one", "picture of a person", "profile picture", "drawing of a face", "friend", "teenager",
        "child", "artist", "doctor", "tourist", "colleague", "boss", "skater", "biker", "musician",
        "cook", "clerk", "teen", "fan", "hero", "neighbor", "stranger", "emoji")  # fmt: skip
PEOPLE = (
    Person(_MEN, _AGES, _HE),
    Person(_WOMEN, _AGES, _SHE),
    Person(_ANY, _AGES, _THEY),
    Person(_ANY, _AGES, _ONE),
    Person(_ANY, _AGES, _HE),
    Person(_ANY, _AGES, _SHE),
    Person(("character", "face", "avatar", "cartoon", "head"), _AGES, _IT),
    Person(("me", "a portrait of me", "my face", "myself"), _AGES, _I),
)
LEADS = (
    "draw ", "please draw ", "i want ", "i would like to see ", "a picture of ", "a drawing of ",
    "an image of ", "show me ", "can you make ", "a portrait of ", "a photo of ", "imagine ",
    "here is ", "this is ", "there is ", "we see ", "look, ", "i see ", "give me ", "a cartoon of ",
    "it shows ", "the picture shows ", "generate ", "please show ", "could i get ", "make ",
    "an avatar of ", "a sketch of ", "this image shows ", "it's ", "that's ", "maybe ", "just ",
)  # fmt: skip
SHADES = ("bright", "dark", "light", "deep", "vivid", "faded", "pale", "strong", "soft", "dull")
REMARKS = (
    "it is a simple drawing", "nice picture", "{s} {is} about thirty", "it looks like a cartoon",
    "{p} name is Alex", "{s} {is} facing us", "the drawing is flat", "what a face", "that is all",
    "{s} {is} looking at the viewer", "the colours are bright", "no text please", "thank you",
    "{s} could be anyone", "{s} {is} in the middle of the picture", "keep it simple", "hello",
    "only head and shoulders are visible", "it was a long day", "{s} {is} at home", "that's it",
    "the style is flat", "a real character", "you would know {o} anywhere", "who could it be",
    "{s} just came home", "{s} {is} waiting for the bus", "make it a cartoon", "one of a kind",
    "{s} {is} on the way to work", "this is my favourite", "seen from the front", "very stylish",
)  # fmt: skip
SEPARATORS = (
    ". ",
    ". ",
    ". ",
    ", ",
    "; ",
    " - ",
    "! ",
    ", and ",
    " and ",
    "\n",
    " — ",
    "... ",
    "? ",
)


def misspell(text: str, rng: random.Random) -> str:
    """Return the text with typing errors in about a quarter of its longer words."""
    return " ".join(
        _mistype(word, rng) if len(word) > 3 and rng.random() < 0.25 else word
        for word in text.split(" ")
    )


def _mistype(word: str, rng: random.Random) -> str:
    """Return the word with a letter left out, doubled, swapped or replaced by its neighbour."""
    at = rng.randrange(1, len(word) - 1)
    kind = rng.randrange(5)
    if kind == 0:
        return word[:at] + word[at + 1 :]
    if kind == 1:
        return word[:at] + word[at] + word[at:]
    if kind == 2:
        return word[:at] + word[at + 1] + word[at] + word[at + 2 :]
    if kind == 3 and "-" in word:
        return word.replace("-", rng.choice(["", " "]))
    near = KEYS.get(word[at].lower(), word[at])
    return word[:at] + rng.choice(near) + word[at + 1 :]
