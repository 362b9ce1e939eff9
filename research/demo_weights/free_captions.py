"""Sentences about a face as people write them: the wide grammar that the demo's CLIP learns from.

The captions of the demo's data set come from `captions.py`, a small grammar. Here are many more
words, free order, several sentences, pronouns, remarks that say nothing about the face, corrections
("a hat? no, a beanie"), absent things and typing errors. A sentence states nothing false.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from demo.captions import choose_attributes
from utils.data.celeba_captions import enumerate_phrases, mend_articles

Forms = dict[str, list[str]]  # part of speech → wordings


def alternatives(node: Any) -> Any:
    """Return words of free_words.yaml as lists, split at their bars."""
    if isinstance(node, dict):
        return {key: alternatives(value) for key, value in node.items()}
    return [word.strip() for word in node.split("|")] if node else []


WORDS = yaml.safe_load(Path(__file__).with_name("free_words.yaml").read_text(encoding="utf-8"))
VALUES: dict[str, dict[str, Forms]] = alternatives(WORDS["values"])  # by attribute and value
BARE: dict[str, Forms] = alternatives(WORDS["bare"])  # a colour alone
COLORS: dict[str, dict[str, list[str]]] = alternatives(WORDS["colors"])
HAIRED: dict[str, list[str]] = alternatives(WORDS["haired"])
BACKGROUND: Forms = alternatives(WORDS["background"])
AGES, SHADES, REMARKS = (alternatives(WORDS[key]) for key in ("ages", "shades", "remarks"))
LEADS, SEPARATORS = WORDS["leads"], WORDS["separators"]
CORRECTED = 0.12  # fraction of phrases that are set against a wrong one
NOT_AFTER_IS = ("with", "looking", "in ", "tongue", "eyes", "mouth", "teeth", "who ", "hearts ")
KEYBOARD = (  # a letter, and those beside it
    "asq bvn cxv dsf ewr fdg gfh hgj iuo jhk kjl lk mn nbm oip po ret sad try uyi vcb wqe xzc ytu"
)
NEIGHBOURS = {letters[0]: letters[1:] for letters in KEYBOARD.split()}


@dataclass(frozen=True)
class Person:
    """Words for the person: nouns such as "man", and pronouns.

    pronouns: s, p, o (she, her, her), and is, has, wears in the form that goes with s.
    """

    nouns: list[str]
    pronouns: dict[str, str]

    def __getitem__(self, key: str) -> str:
        return self.pronouns[key]


PEOPLE = [
    Person(alternatives(WORDS["nouns"][nouns]), WORDS["pronouns"][pronouns])
    for nouns, pronouns in WORDS["people"]
]


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
    color = {
        f"{kind}_color": _tint(COLORS[words][attributes[f"{kind}_color"]], rng)
        if f"{kind}_color" in wanted
        else ""
        for kind, words in (("hair", "hair"), ("clothes", "fabric"), ("headwear", "fabric"))
    }
    bearded = attributes["facial_hair"] != "none" and "facial_hair" in wanted
    if (
        bearded  # "a ginger beard"
        and color["hair_color"]
        and "hair_style" not in wanted
        and (attributes["hair_style"] == "hidden" or chance(rng))
    ):
        facts.append(_fact("facial_hair", attributes, color["hair_color"]))
        wanted = wanted - {"facial_hair", "hair_color"}
    if "hair_style" in wanted:
        facts.append(_fact("hair_style", attributes, color["hair_color"]))
    elif "hair_color" in wanted:
        nouns = HAIRED[attributes["hair_color"]]
        forms = BARE["hair"] | ({"noun": nouns} if nouns else {})
        facts.append(Fact(forms, color["hair_color"]))
    for kind in ("clothes", "headwear"):
        if kind in wanted:
            facts.append(_fact(kind, attributes, color[f"{kind}_color"]))
        elif f"{kind}_color" in wanted:
            facts.append(Fact(BARE[kind], color[f"{kind}_color"]))
    plain = ("facial_hair", "glasses", "skin", "eyes", "expression")
    facts += [_fact(name, attributes) for name in plain if name in wanted]
    if "background" in wanted:
        color_of_it = rng.choice(COLORS["background"][attributes["background"]])
        facts.append(Fact(BACKGROUND, color_of_it))
    rng.shuffle(facts)
    return facts


def _tint(words: list[str], rng: random.Random) -> str:
    """Choose a word for a colour, now and then with a shade."""
    word = rng.choice(words)
    plain = word in ("red", "blue", "green", "yellow", "purple", "brown", "grey", "pink", "ginger")
    return f"{rng.choice(SHADES)} {word}" if plain and chance(rng, 0.4) else word


def chance(rng: random.Random, probability: float = 0.5) -> bool:
    """Return True with a probability."""
    return rng.random() < probability


def _fact(name: str, attributes: dict[str, str], color: str = "") -> Fact:
    value, table = attributes[name], VALUES[name]
    others = tuple(forms for other, forms in table.items() if other not in (value, "none"))
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
        before.insert(0, rng.choice(AGES))
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
    near = NEIGHBOURS.get(word[at].lower(), word[at])
    return word[:at] + rng.choice(near) + word[at + 1 :]
