"""CelebA's forty attributes: reading the annotation file, and sentences that name some of them.

A sentence names a random subset of a face's attributes. Attributes that contradict each other (a
goatee but no beard, a bald head with wavy hair) are left out or resolved in `face_facts`.
"""

from __future__ import annotations

import random
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

from utils.base.errors import UserError

# fmt: off
ATTRIBUTES = (
    "5_o_Clock_Shadow", "Arched_Eyebrows", "Attractive", "Bags_Under_Eyes", "Bald", "Bangs",
    "Big_Lips", "Big_Nose", "Black_Hair", "Blond_Hair", "Blurry", "Brown_Hair", "Bushy_Eyebrows",
    "Chubby", "Double_Chin", "Eyeglasses", "Goatee", "Gray_Hair", "Heavy_Makeup", "High_Cheekbones",
    "Male", "Mouth_Slightly_Open", "Mustache", "Narrow_Eyes", "No_Beard", "Oval_Face", "Pale_Skin",
    "Pointy_Nose", "Receding_Hairline", "Rosy_Cheeks", "Sideburns", "Smiling", "Straight_Hair",
    "Wavy_Hair", "Wearing_Earrings", "Wearing_Hat", "Wearing_Lipstick", "Wearing_Necklace",
    "Wearing_Necktie", "Young",
)

# fmt: on
# Attributes that contradict no other: name -> kind, wordings (the most common one first).
PhraseKind = Literal["looks", "has", "wears", "does"]
PLAIN: dict[str, tuple[PhraseKind, list[str]]] = {
    "Attractive": ("looks", ["attractive", "good-looking"]),
    "Bags_Under_Eyes": ("has", ["bags under the eyes", "eye bags"]),
    "Big_Lips": ("has", ["big lips", "full lips"]),
    "Double_Chin": ("has", ["a double chin"]),
    "Eyeglasses": ("wears", ["eyeglasses", "glasses", "a pair of glasses"]),
    "Heavy_Makeup": ("wears", ["heavy makeup", "a lot of makeup"]),
    "High_Cheekbones": ("has", ["high cheekbones", "prominent cheekbones"]),
    "Mouth_Slightly_Open": ("has", ["a slightly open mouth", "slightly parted lips"]),
    "Narrow_Eyes": ("has", ["narrow eyes"]),
    "Pale_Skin": ("has", ["pale skin", "a pale complexion", "fair skin"]),
    "Rosy_Cheeks": ("has", ["rosy cheeks", "pink cheeks"]),
    "Wearing_Earrings": ("wears", ["earrings"]),
    "Wearing_Hat": ("wears", ["a hat", "headwear"]),
    "Wearing_Lipstick": ("wears", ["lipstick"]),
    "Wearing_Necklace": ("wears", ["a necklace"]),
    "Wearing_Necktie": ("wears", ["a necktie", "a tie"]),
}
HAIR_COLOR = {
    "Black_Hair": ["black"],
    "Blond_Hair": ["blond", "blonde", "fair"],
    "Brown_Hair": ["brown"],
    "Gray_Hair": ["gray", "grey", "silver"],
}
SUBJECTS = {True: ["man", "man", "gentleman", "guy"], False: ["woman", "woman", "lady"]}
MOST_FACTS = 6  # of a sentence


@dataclass(frozen=True)
class Fact:
    """A property of a face: an adjective, or a thing that the face has, wears or does."""

    kind: PhraseKind
    wordings: list[str]
    weight: float = 1.0  # probability that a sentence considers it at all


def read_attributes(file: Path) -> Iterator[tuple[str, set[str]]]:
    """Yield image names with their attributes from `CelebAMask-HQ-attribute-anno.txt`.

    The file holds the number of images, the names of the attributes, and for each image its name
    and a 1 or -1 for each attribute. Raises a UserError with the line number at the first fault.
    """
    try:
        lines = file.read_text(encoding="utf-8").rstrip().split("\n")
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: is not a text file of attributes") from error

    if not lines[0].strip().isdecimal():
        raise UserError(f"{file}:1: should be the number of images, is {lines[0][:40]!r}")
    count, header = int(lines[0]), lines[1].split() if len(lines) > 1 else []
    if missing := sorted(set(ATTRIBUTES) - set(header)):
        raise UserError(
            f"{file}:2: should name CelebA's 40 attributes; {len(missing)} are missing "
            f"({missing[0]}, …)"
        )
    if len(lines) - 2 != count:
        raise UserError(f"{file}: line 1 says {count} images, but {len(lines) - 2} lines follow")
    seen: dict[str, int] = {}
    for number, line in enumerate(lines[2:], 3):
        name, *values = line.split() or [""]
        if len(values) != len(header) or not set(values) <= {"1", "-1"}:
            raise UserError(
                f"{file}:{number}: should be an image name and {len(header)} times 1 or -1"
            )
        if PurePosixPath(name).name != name:
            raise UserError(f"{file}:{number}: {name!r} is not a plain file name")
        if name in seen:
            raise UserError(f"{file}:{number}: line {seen[name]} describes {name} already")
        seen[name] = number
        yield name, {a for a, value in zip(header, values, strict=True) if value == "1"}


def make_captions(name: str, attributes: Collection[str], count: int) -> list[str]:
    """Return `count` sentences about one face; they depend on the arguments alone.

    Sentences differ from each other, unless the face has too few attributes for so many.
    """
    rng = random.Random(f"celeba {name}")
    captions: list[str] = []
    for _ in range(20 * count):
        caption = make_caption(attributes, rng)
        if caption not in captions:
            captions.append(caption)
        if len(captions) == count:
            return captions
    return captions + [make_caption(attributes, rng) for _ in range(count - len(captions))]


def face_facts(attributes: Collection[str], rng: random.Random) -> list[Fact]:
    """Return all facts about a face except its gender; `rng` chooses among wordings."""
    has = set(attributes).__contains__
    facts = [Fact(kind, words) for name, (kind, words) in PLAIN.items() if has(name)]
    facts.append(Fact("looks", ["young"] if has("Young") else ["older", "mature"]))
    if has("Smiling"):
        facts.append(Fact("does", ["smiling"]) if rng.random() < 0.8 else Fact("has", ["a smile"]))
    else:
        facts.append(Fact("does", ["not smiling"], 0.15))

    for noun, kinds in (
        ("eyebrows", {"Bushy_Eyebrows": "bushy", "Arched_Eyebrows": "arched"}),
        ("nose", {"Big_Nose": "big", "Pointy_Nose": "pointy"}),
    ):
        adjectives = [word for name, word in kinds.items() if has(name)]
        if adjectives:
            phrase = " ".join([*adjectives, noun])
            facts.append(Fact("has", [f"a {phrase}" if noun == "nose" else phrase]))
    if has("Chubby"):
        facts.append(Fact("has", ["a chubby face", "chubby cheeks", "a plump face"]))
    elif has("Oval_Face"):
        facts.append(Fact("has", ["an oval face"]))
    return facts + _hair_facts(attributes, rng) + _facial_hair_facts(attributes, rng)


def _hair_facts(attributes: Collection[str], rng: random.Random) -> list[Fact]:
    """Return the facts about the hair on the head."""
    has = set(attributes).__contains__
    if has("Bald"):
        bald_head = Fact("has", ["a bald head", "no hair on the head"])
        return [Fact("looks", ["bald"]) if rng.random() < 0.6 else bald_head]
    facts = []
    if has("Bangs") != has("Receding_Hairline"):  # both at once contradict each other
        words = ["bangs", "a fringe"] if has("Bangs") else ["a receding hairline"]
        facts.append(Fact("has", words))
    # Two colours, or both straight and wavy, mean that the annotators were in doubt.
    colors = [name for name in HAIR_COLOR if has(name)]
    textures = [name for name in ("Straight_Hair", "Wavy_Hair") if has(name)]
    color = choose_word(HAIR_COLOR[colors[0]], rng) if len(colors) == 1 else ""
    texture = textures[0].removesuffix("_Hair").lower() if len(textures) == 1 else ""
    if color and texture:
        wording = rng.choice([f"{texture} {color}", f"{texture} {color}", color, texture])
    else:
        wording = color or texture
    return [*facts, Fact("has", [f"{wording} hair"])] if wording else facts


def _facial_hair_facts(attributes: Collection[str], rng: random.Random) -> list[Fact]:
    """Return the facts about beard, mustache and sideburns."""
    has = set(attributes).__contains__
    if not has("Male"):
        return []
    facts = [Fact("has", ["sideburns"])] if has("Sideburns") else []
    if has("Mustache"):
        facts.append(Fact("has", ["a mustache", "a moustache"]))
    if has("No_Beard"):
        if has("5_o_Clock_Shadow"):
            facts.append(Fact("has", ["a five o'clock shadow", "light stubble"]))
        elif not (has("Goatee") or has("Mustache")):
            shaven, no_beard = Fact("looks", ["clean-shaven"], 0.3), Fact("has", ["no beard"], 0.3)
            facts.append(shaven if rng.random() < 0.6 else no_beard)
    elif has("Goatee"):
        facts.append(Fact("has", ["a goatee"]))
    elif has("5_o_Clock_Shadow"):
        facts.append(Fact("has", ["a five o'clock shadow", "stubble", "a stubbly beard"]))
    else:
        facts.append(Fact("has", ["a beard"]))
    return facts


def make_caption(attributes: Collection[str], rng: random.Random) -> str:
    """Return one sentence that names a random subset of a face's attributes."""
    facts = [fact for fact in face_facts(attributes, rng) if rng.random() < fact.weight]
    named = rng.sample(facts, min(len(facts), rng.randint(2, MOST_FACTS)))
    phrases: dict[PhraseKind, list[str]] = {"looks": [], "has": [], "wears": [], "does": []}
    last_words: set[str] = set()
    for fact in named:
        # "big lips and slightly parted lips" is no good English.
        words = [w for w in fact.wordings if w.rpartition(" ")[2] not in last_words]
        if words:
            phrases[fact.kind].append(choose_word(words, rng))
            last_words.add(phrases[fact.kind][-1].rpartition(" ")[2])
    is_male = "Male" in attributes
    noun = rng.choice(SUBJECTS[is_male]) if rng.random() < 0.85 else "person"
    text = mend_articles(_sentence(phrases, noun, "he" if is_male else "she", rng))
    return text[0].upper() + text[1:] + "."


def _sentence(
    phrases: dict[PhraseKind, list[str]], noun: str, pronoun: str, rng: random.Random
) -> str:
    """Put phrases of each kind and a subject together, in one of several forms."""
    order = ["attractive", "good-looking", "young", "older", "mature"]
    looks = sorted(phrases["looks"], key=lambda w: order.index(w) if w in order else len(order))
    person = " ".join([*looks, noun])
    form = rng.random()
    if form < 0.35:  # A young man with a goatee, wearing a tie and smiling
        start = rng.choice(["", "", "", "a photo of ", "a portrait of ", "a close-up of "])
        return f"{start}a {_described(person, phrases, rng)}"
    if form < 0.5:  # She is a young woman with wavy hair, smiling
        return f"{pronoun} is a {_described(person, phrases, rng)}"
    if form < 0.62 and phrases["has"] and (phrases["wears"] or phrases["does"]):
        # With wavy hair and bangs, this young woman is smiling
        predicates = _predicates({**phrases, "has": []}, rng)
        return f"with {enumerate_phrases(phrases['has'])}, this {person} {predicates}"
    predicates = _predicates(phrases, rng)
    if not predicates:
        return f"{pronoun} is a {person}"
    subject = rng.choice([f"this {person}", f"the {person}"] + ([] if looks else [pronoun] * 2))
    return f"{subject} {predicates}"


def _described(person: str, phrases: dict[PhraseKind, list[str]], rng: random.Random) -> str:
    """Return a noun phrase, e.g. `man with a goatee, wearing a tie and smiling`."""
    text = f"{person} with {enumerate_phrases(phrases['has'])}" if phrases["has"] else person
    if not phrases["has"] and not phrases["wears"] and phrases["does"]:
        return f"{text} who is {enumerate_phrases(phrases['does'])}"
    doing = [f"wearing {enumerate_phrases(phrases['wears'])}"] if phrases["wears"] else []
    doing += phrases["does"]
    if doing:
        joint = ", and " if len(phrases["wears"]) > 1 else " and "
        text += (", " if phrases["has"] else " ") + joint.join(doing)
    return text


def _predicates(phrases: dict[PhraseKind, list[str]], rng: random.Random) -> str:
    """Return predicates, e.g. `has a goatee, is smiling and wears a tie`; empty without phrases."""
    verbs = {"has": "has", "wears": rng.choice(["is wearing", "wears"]), "does": "is"}
    order: tuple[PhraseKind, ...] = ("has", "does", "wears")
    kinds = [kind for kind in order if phrases[kind]]
    rng.shuffle(kinds)
    parts = [f"{verbs[kind]} {enumerate_phrases(phrases[kind])}" for kind in kinds]
    if len(parts) < 2 or not any(" and " in part for part in parts):
        return enumerate_phrases(parts) if parts else ""
    return ", ".join(parts[:-1]) + ", and " + parts[-1]


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
