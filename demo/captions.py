"""A small grammar that describes a face in plain English from its attributes.

A caption names a random subset of what the face shows, in varied order and wording. It states
nothing false. Hair, clothes and headwear may be named with or without their colour.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

from utils.data.celeba_captions import choose_word, enumerate_phrases, mend_articles

Words = dict[str, list[str]]  # value → its wordings; the first one is the plainest

HAIR_COLOR = {
    "black": ["black", "jet-black", "raven"],
    "brown": ["brown", "chestnut", "brunette"],
    "blond": ["blond", "golden", "blonde", "fair"],
    "red": ["red", "ginger", "copper"],
    "grey": ["grey", "gray", "silver"],
    "pink": ["pink", "pink-dyed"],
}
HAIR_STYLE = {  # noun phrases; {c} takes the colour (or nothing)
    "long straight": ["long {c} hair", "long straight {c} hair", "{c} hair that is long"],
    "long wavy": ["long wavy {c} hair", "wavy {c} hair", "big wavy {c} hair"],
    "bob": ["a {c} bob", "{c} hair in a bob", "a {c} bob cut", "chin-length {c} hair"],
    "bun": ["a {c} bun", "{c} hair in a bun", "{c} hair tied up in a bun"],
    "afro": ["a {c} afro", "an afro of {c} hair", "a big round {c} afro"],
    "dreadlocks": ["{c} dreadlocks", "long {c} dreads", "{c} hair in dreadlocks"],
    "short": ["short {c} hair", "{c} hair cut short", "a short {c} haircut"],
    "quiff": ["a {c} quiff", "shaved sides and a {c} quiff", "{c} hair in a quiff"],
}
HEADWEAR = {
    "hat": ["a {c} hat", "a wide-brimmed {c} hat", "a {c} sun hat"],
    "beanie": ["a {c} beanie", "a {c} knit cap", "a {c} woolly cap"],
    "turban": ["a {c} turban", "a {c} head wrap"],
    "earflap hat": ["a {c} hat with earflaps", "a {c} earflap hat", "a {c} ski hat with earflaps"],
}
CLOTHES = {
    "hoodie": ["a {c} hoodie", "a {c} hooded sweatshirt", "a hoodie in {c}"],
    "t-shirt": ["a {c} t-shirt", "a {c} tee", "a plain {c} t-shirt"],
    "overalls": ["{c} overalls", "{c} dungarees", "a pair of {c} overalls"],
    "blazer": ["a {c} blazer", "a {c} jacket over a white shirt", "a {c} suit jacket"],
    "sweater": ["a {c} sweater with a collar", "a {c} collared sweater", "a {c} jumper"],
}
FABRIC_COLOR = {
    "red": ["red", "scarlet"],
    "blue": ["blue", "royal blue"],
    "green": ["green", "emerald"],
    "yellow": ["yellow", "bright yellow"],
    "black": ["black", "dark"],
    "white": ["white", "off-white"],
    "purple": ["purple", "violet"],
}
GLASSES = {
    "none": ["no glasses", "without glasses"],
    "round": ["round glasses", "glasses", "round spectacles", "eyeglasses", "round-rimmed glasses"],
    "sunglasses": ["sunglasses", "dark sunglasses", "shades", "dark shades"],
}
FACIAL_HAIR = {
    "none": ["no beard", "clean-shaven", "a clean-shaven face", "no facial hair"],
    "moustache": ["a moustache", "a mustache", "a bushy moustache"],
    "beard": ["a beard", "a full beard", "a thick beard"],
}
SKIN = {
    "pale": ["pale skin", "fair skin", "light skin"],
    "tan": ["tan skin", "olive skin", "tanned skin"],
    "brown": ["brown skin", "medium brown skin"],
    "dark": ["dark skin", "deep brown skin", "very dark skin"],
}
EYES = {
    "open": ["open eyes", "small round eyes", "plain eyes"],
    "closed": ["closed eyes", "eyes shut", "both eyes closed"],
    "hearts": ["heart eyes", "hearts for eyes", "heart-shaped eyes"],
    "wink": ["a wink", "one eye winking", "a winking eye"],
    "wide": ["wide eyes", "wide-open eyes", "big surprised eyes"],
}
EXPRESSION = {  # stands after a comma: "…, smiling"
    "smiling": ["smiling", "with a smile", "looking happy", "grinning happily"],
    "sad": ["looking sad", "with a sad frown", "frowning sadly", "unhappy"],
    "tongue out": ["sticking out the tongue", "with the tongue out", "tongue out"],
    "serious": [
        "looking serious",
        "with a serious face",
        "with a straight mouth",
        "expressionless",
    ],
    "angry": ["looking angry", "gritting the teeth", "with clenched teeth", "baring the teeth"],
    "shouting": ["shouting", "screaming", "with the mouth wide open", "yelling"],
}
BACKGROUND = {
    "white": ["white"],
    "blue": ["blue", "light blue", "sky-blue"],
    "pink": ["pink", "rose"],
    "green": ["green", "mint-green"],
    "yellow": ["yellow", "pale yellow"],
    "lavender": ["lavender", "lilac", "light purple"],
    "grey": ["grey", "gray"],
}
SUBJECTS = [
    "a person",
    "a face",
    "someone",
    "a portrait of a person",
    "a character",
    "a cartoon face",
]
BACKGROUND_FORMS = [
    "on a {c} background",
    "in front of a {c} background",
    "against a {c} wall",
    "{c} background",
]


@dataclass
class Phrases:
    """Phrases about one face, by the part of the sentence that they belong to."""

    having: list[str] = field(default_factory=list)  # "with …"
    wearing: list[str] = field(default_factory=list)  # "wearing …"
    doing: list[str] = field(default_factory=list)  # after a comma
    where: list[str] = field(default_factory=list)  # after a comma


def make_caption(
    attributes: dict[str, str], rng: random.Random, must_name: str = ""
) -> dict[str, Any]:
    """Write one sentence about a face.

    Args:
        attributes: name → value, as `make_faces.hide` returns them; "hidden" ones are never named.
        rng: source of every choice.
        must_name: an attribute that the caption has to name, if the face shows it.

    Returns:
        `{"text": str, "states": [names of the attributes that the text states]}`
    """
    wanted = choose_attributes(attributes, rng, must_name)
    phrases = _choose_phrases(attributes, wanted, rng)
    return {"text": mend_articles(_sentence(phrases, rng)), "states": sorted(wanted)}


def choose_attributes(attributes: dict[str, str], rng: random.Random, must_name: str) -> set[str]:
    """Choose the attributes that a caption names."""
    shown = [name for name, value in attributes.items() if value != "hidden"]
    # Absent things (no hat, no glasses, no beard) are named rarely.
    weights = {name: 0.25 if attributes[name] == "none" else 1.0 for name in shown}
    pool = [name for name in shown if rng.random() < weights[name]]
    wanted = set(rng.sample(pool, min(len(pool), rng.randint(2, len(shown)))))
    if must_name in shown:
        wanted.add(must_name)
    if attributes["headwear"] == "none":
        wanted -= {"headwear"} - {must_name}
    return wanted


def _choose_phrases(attributes: dict[str, str], wanted: set[str], rng: random.Random) -> Phrases:
    """Choose the words for the `wanted` attributes."""

    def word(table: dict[str, list[str]], name: str) -> str:
        return choose_word(table[attributes[name]], rng)

    def coloured(table: Words, kind: str, colours: Words, colour: str, bare: list[str]) -> str:
        """Return a noun phrase for a thing and its colour; either may be left out."""
        named = rng.choice(table[attributes[kind]]) if kind in wanted else rng.choice(bare)
        tint = word(colours, colour) if colour in wanted else ""
        phrase = " ".join(named.replace("{c}", tint).split())
        return phrase.removesuffix(" in")  # "a hoodie in {c}" without its colour

    phrases = Phrases()
    if {"hair_style", "hair_color"} & wanted:
        hair = coloured(HAIR_STYLE, "hair_style", HAIR_COLOR, "hair_color", ["{c} hair"])
        phrases.having.append(hair)
    if {"clothes", "clothes_color"} & wanted:
        bare = ["{c} clothes", "something {c}", "{c} clothing"]
        clothes = coloured(CLOTHES, "clothes", FABRIC_COLOR, "clothes_color", bare)
        phrases.wearing.append(clothes)
    if "headwear" in wanted and attributes["headwear"] == "none":
        phrases.having.append("no hat")
    elif {"headwear", "headwear_color"} & wanted:
        bare = ["{c} headwear", "something {c} on the head"]
        headwear = coloured(HEADWEAR, "headwear", FABRIC_COLOR, "headwear_color", bare)
        phrases.wearing.append(headwear)
    if "glasses" in wanted:
        _add_glasses(phrases, word(GLASSES, "glasses"), attributes["glasses"], rng)
    if "facial_hair" in wanted:
        beard = word(FACIAL_HAIR, "facial_hair")
        (phrases.doing if beard == "clean-shaven" else phrases.having).append(beard)
    if "skin" in wanted:
        phrases.having.append(word(SKIN, "skin"))
    if "eyes" in wanted:
        phrases.having.append(word(EYES, "eyes"))
    if "expression" in wanted:
        phrases.doing.append(word(EXPRESSION, "expression"))
    if "background" in wanted:
        form = rng.choice(BACKGROUND_FORMS)
        phrases.where.append(form.format(c=word(BACKGROUND, "background")))
    return phrases


def _add_glasses(phrases: Phrases, words: str, value: str, rng: random.Random) -> None:
    """Add the phrase about glasses to a part of the sentence that fits it."""
    if words.startswith("without"):
        phrases.doing.append(words)
    elif value == "none" or rng.random() < 0.5:
        phrases.having.append(words)
    else:
        phrases.wearing.append(words)


def _sentence(phrases: Phrases, rng: random.Random) -> str:
    """Put the phrases together: a full sentence, or now and then a list of keywords."""
    for part in (phrases.having, phrases.wearing, phrases.doing):
        rng.shuffle(part)
    if rng.random() < 0.2:
        keywords = phrases.having + phrases.wearing + phrases.doing + phrases.where
        rng.shuffle(keywords)
        return ", ".join(keywords)
    parts = []
    if phrases.having:
        parts.append("with " + enumerate_phrases(phrases.having))
    if phrases.wearing:
        verb = rng.choice(["wearing ", "in ", "dressed in "])
        parts.append(verb + enumerate_phrases(phrases.wearing))
    rng.shuffle(parts)
    tail = phrases.doing + phrases.where
    rng.shuffle(tail)
    sentence = " ".join([rng.choice(SUBJECTS), *parts])
    return ", ".join([sentence, *tail])
