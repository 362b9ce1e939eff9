"""Sentences about a face as people write them: the wide grammar that the demo's CLIP learns from.

The captions of the demo's data set come from `captions.py`, a small grammar. Here are many more
words, free order, several sentences, pronouns, remarks that say nothing about the face, corrections
("a hat? no, a beanie"), absent things and typing errors. A sentence states nothing false.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from typing import Any

from demo.captions import choose_attributes
from research.demo_weights import free_face_words as face_words
from research.demo_weights import free_words as words
from research.demo_weights.free_frames import (
    LEADS,
    PEOPLE,
    REMARKS,
    SEPARATORS,
    SHADES,
    Person,
    misspell,
)
from research.demo_weights.free_words import Forms, FreeWords
from utils.data.celeba_captions import enumerate_phrases, mend_articles

CORRECTED = 0.12  # share of phrases that are set against a wrong one
NOT_AFTER_IS = ("with", "looking", "in ", "tongue", "eyes", "mouth", "teeth", "who ", "hearts ")
PLAIN: dict[str, FreeWords] = {  # attributes whose words have no colour
    "glasses": face_words.GLASSES,
    "skin": face_words.SKIN,
    "eyes": face_words.EYES,
    "expression": face_words.EXPRESSION,
}


@dataclass(frozen=True)
class Fact:
    """One thing to say about a face.

    forms: its wordings by part of speech; {c}, {b}, {p}, {s} and so on are still in place.
    color: the colour that they take, or "".
    others: forms of the thing's other values, for corrections; empty if there are none.
    """

    forms: Forms
    color: str = ""
    others: tuple[Forms, ...] = ()

    def parts(self, *wanted: str) -> list[str]:
        """Return those of the wanted parts of speech that can say the whole fact."""
        return [part for part in wanted if self._wordings(part)]

    def say(self, part: str, person: Person, rng: random.Random) -> str:
        """Return a wording of a part of speech that `parts` lists."""
        return fill(rng.choice(self._wordings(part)), self.color, person)

    def _wordings(self, part: str) -> list[str]:
        wordings = self.forms.get(part, [])
        if self.color:
            return [w for w in wordings if "{c}" in w or "{b}" in w]
        return [w for w in wordings if not w.endswith(" {c}")]  # "her hat is {c}"


def fill(words: str, color: str, person: Person) -> str:
    """Put colour and pronouns into a wording."""
    text = words.replace("{c}", color).replace("{b}", color or "thick").replace("{P}", "{p}")
    text = re.sub(r"\{(p|s|o|is|has|wears)\}", lambda found: person[found[1]], text)
    third = person["is"] == "is"  # "smile[s]", "cr[ies/y]"
    text = re.sub(r"\[(\w+)/?(\w*)\]", lambda found: found[1] if third else found[2], text)
    text = re.sub(r"^-|(?<=\s)-(?=bearded|haired)", "", " ".join(text.split()))
    return text.removesuffix(" in").replace(" , ", ", ")


def gather_facts(attributes: dict[str, str], wanted: set[str], rng: random.Random) -> list[Fact]:
    """Return the facts that state exactly the `wanted` attributes, in random order."""
    facts = []
    color = {n: _tint(t[attributes[n]], rng) if n in wanted else "" for n, t in _COLORS.items()}
    bearded = attributes["facial_hair"] != "none" and "facial_hair" in wanted
    if (
        bearded  # "a ginger beard"
        and color["hair_color"]
        and "hair_style" not in wanted
        and (attributes["hair_style"] == "hidden" or chance(rng))
    ):
        facts.append(_fact(face_words.FACIAL_HAIR, attributes["facial_hair"], color["hair_color"]))
        wanted = wanted - {"facial_hair", "hair_color"}
    if "hair_style" in wanted:
        facts.append(_fact(words.HAIR_STYLE, attributes["hair_style"], color["hair_color"]))
    elif "hair_color" in wanted:
        nouns = [noun for noun in words.HAIRED[attributes["hair_color"]] if noun]
        forms = words.BARE_HAIR | ({"noun": nouns} if nouns else {})
        facts.append(Fact(forms, color["hair_color"]))
    for kind, table, bare_forms in _COLOURED:
        if kind in wanted:
            facts.append(_fact(table, attributes[kind], color[kind + "_color"]))
        elif kind + "_color" in wanted:
            facts.append(Fact(bare_forms, color[kind + "_color"]))
    if "facial_hair" in wanted:
        facts.append(_fact(face_words.FACIAL_HAIR, attributes["facial_hair"]))
    facts += [_fact(table, attributes[n]) for n, table in PLAIN.items() if n in wanted]
    if "background" in wanted:
        forms = {"where": face_words.WHERE, "clause": face_words.WHERE_CLAUSE}
        facts.append(Fact(forms, rng.choice(face_words.BACKGROUND[attributes["background"]])))
    rng.shuffle(facts)
    return facts


def _tint(words: list[str], rng: random.Random) -> str:
    """Choose a word for a colour, now and then with a shade."""
    word = rng.choice(words)
    plain = word in ("red", "blue", "green", "yellow", "purple", "brown", "grey", "pink", "ginger")
    return f"{rng.choice(SHADES)} {word}" if plain and chance(rng, 0.4) else word


_COLORS = {
    "hair_color": words.HAIR_COLOR,
    "clothes_color": words.FABRIC_COLOR,
    "headwear_color": words.FABRIC_COLOR,
}
_COLOURED = (
    ("clothes", words.CLOTHES, words.BARE_CLOTHES),
    ("headwear", words.HEADWEAR, words.BARE_HEADWEAR),
)


def chance(rng: random.Random, share: float = 0.5) -> bool:
    """Return True in a share of all cases."""
    return rng.random() < share


def _fact(table: FreeWords, value: str, color: str = "") -> Fact:
    others = tuple(forms for name, forms in table.items() if name not in (value, "none"))
    return Fact(table[value], color, others)


def write_free_caption(
    attributes: dict[str, str], rng: random.Random, must_name: str = ""
) -> dict[str, Any]:
    """Write a free text about a face: keywords, one sentence, or several.

    Args:
        attributes: name → value, as `make_faces.hide` returns them; "hidden" ones are never named.
        rng: source of every choice.
        must_name: an attribute that the text has to name, if the face shows it.

    Returns:
        `{"text": str, "states": [names of the attributes that the text states]}`
    """
    wanted = choose_attributes(attributes, rng, must_name)
    if chance(rng) and len(wanted) > 5:  # people rarely name all
        wanted = set(rng.sample(sorted(wanted), 5)) | ({must_name} & wanted)
    facts = gather_facts(attributes, wanted, rng)
    person = rng.choice(PEOPLE)
    style = rng.random()
    if style < 0.15:
        text = _keywords(facts, person, rng)
    elif style < 0.5:
        text = _one_sentence(facts, person, rng)
    else:
        text = _several_sentences(facts, person, rng)
    if chance(rng, 0.2):
        text = misspell(text, rng)
    return {"text": mend_articles(text), "states": sorted(wanted)}


def _phrase(fact: Fact, person: Person, rng: random.Random) -> tuple[str, str]:
    """Return a phrase without a verb ("a red hat", "smiling"), and before it its part of speech.

    The part of a corrected phrase is "".
    """
    part = rng.choice(fact.parts("having", "wearing", "doing", "where"))
    phrase = fact.say(part, person, rng)
    if fact.others and chance(rng, CORRECTED):
        return "", _corrected(fact, part, phrase, person, rng)
    return part, phrase


def _corrected(fact: Fact, part: str, phrase: str, person: Person, rng: random.Random) -> str:
    """Return the phrase beside one of another value that the sentence denies."""
    denied = [forms[part] for forms in fact.others if part in forms]
    if not denied:
        return phrase
    wrong = fill(rng.choice(rng.choice(denied)), "", person)
    form = rng.choice(
        ["{w}? no, {r}", "not {w} but {r}", "{r}, not {w}", "{r} instead of {w}", "no {w}, but {r}",
         "{w}? no - {r}", "{r} rather than {w}", "{w}, no wait, {r}", "{r} and not {w}"]
    )  # fmt: skip
    return form.replace("{w}", wrong).replace("{r}", phrase)


def _keywords(facts: list[Fact], person: Person, rng: random.Random) -> str:
    """Return a list of keywords."""
    said = []
    for fact in facts:
        if fact.parts("before") and chance(rng, 0.3):
            said.append(fact.say("before", person, rng))
        else:
            _, phrase = _phrase(fact, person, rng)
            said.append(re.sub(r"^an? ", "", phrase) if chance(rng) else phrase)
    if chance(rng, 0.3):
        said.insert(rng.randint(0, len(said)), rng.choice(person.nouns))
    return rng.choice([", ", ", ", ", ", "; ", " / ", " + ", " ", " and ", " | ", ". "]).join(said)


def _noun_phrase(facts: list[Fact], person: Person, rng: random.Random) -> str:
    """Return a person with phrases around it; it states all of `facts`."""
    before: list[str] = []
    said: dict[str, list[str]] = {"having": [], "wearing": [], "doing": [], "where": [], "": []}
    noun = rng.choice(person.nouns)
    for fact in facts:
        if "noun" in fact.forms and chance(rng, 0.3):  # "a redhead"
            noun = rng.choice(fact.forms["noun"])
        elif fact.parts("before") and len(before) < 3 and chance(rng, 0.4):
            before.append(fact.say("before", person, rng))
        else:
            part, phrase = _phrase(fact, person, rng)
            said[part].append(phrase)
    if chance(rng, 0.2):
        before.insert(0, rng.choice(person.ages))
    parts = []
    if said["having"]:
        verb = rng.choice(["with ", "with ", "who has ", "sporting ", "having "])
        parts.append(verb + enumerate_phrases(said["having"]))
    if said["wearing"]:
        verb = rng.choice(["wearing ", "in ", "dressed in ", "who wears ", "with ", "sporting "])
        parts.append(verb + enumerate_phrases(said["wearing"]))
    rng.shuffle(parts)
    after = said["doing"] + said["where"] + said[""]
    rng.shuffle(after)
    article = rng.choice(["a ", "a ", "a ", "the ", "this ", ""])
    adjectives = rng.choice([" ", " ", ", "]).join(before)
    core = " ".join([f"{article}{adjectives} {noun}".replace("  ", " ").strip(), *parts])
    if after and chance(rng, 0.2):  # "On a pink background, a man with …"
        return ", ".join([after[0], core, *after[1:]])
    return rng.choice([", ", ", ", " "]).join([core, *after])


def _one_sentence(facts: list[Fact], person: Person, rng: random.Random) -> str:
    """Return one sentence, now and then with a polite beginning."""
    return (rng.choice(LEADS) if chance(rng, 0.3) else "") + _noun_phrase(facts, person, rng)


def _clause(fact: Fact, person: Person, rng: random.Random) -> str:
    """Return a whole statement about one fact."""
    parts = fact.parts("having", "wearing", "doing")
    if not parts or (fact.parts("clause") and chance(rng, 0.6)):
        return fact.say("clause", person, rng)
    part = rng.choice(parts)
    phrase = fact.say(part, person, rng)
    if fact.others and chance(rng, CORRECTED):
        phrase = _corrected(fact, part, phrase, person, rng)
    if part == "doing" and phrase.startswith(NOT_AFTER_IS):
        return f"{person['s']} {rng.choice(['stands there', 'is shown', 'can be seen'])} {phrase}"
    verb = {"having": person["has"], "wearing": person["wears"], "doing": person["is"]}[part]
    return f"{person['s']} {verb} {phrase}"


def _several_sentences(facts: list[Fact], person: Person, rng: random.Random) -> str:
    """Return a first sentence with some of the facts, and a statement for each other one."""
    first = rng.randint(0, len(facts))
    said = []
    if first or chance(rng, 0.3):
        said.append(_one_sentence(facts[:first], person, rng))
    rest = [_clause(fact, person, rng) for fact in facts[first:]]
    if len(rest) > 1 and chance(rng, 0.3):
        join = rng.choice(
            [" and ", ", while ", " but ", ", and ", " although ", " because ", ", so "]
        )
        rest = [rest[0] + join + rest[1], *rest[2:]]
    said += rest
    if chance(rng, 0.25):
        said.insert(rng.randint(0, len(said)), rng.choice(REMARKS).format(**person.pronouns))
    return rng.choice(SEPARATORS).join(said) + rng.choice(["", ".", "!"])
