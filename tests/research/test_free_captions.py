"""Free sentences about faces: the wide grammar that the demo's CLIP learns from."""

import hashlib
import json
import random
import re

import pytest

from demo.captions import make_caption
from demo.make_faces import ATTRIBUTES, hide, make_face, random_attributes
from research.demo_weights.free_captions import (
    COLORS,
    PEOPLE,
    VALUES,
    gather_facts,
    misspell,
    write_free_caption,
)


def wordings(name: str, value: str) -> list[str]:
    if name in VALUES:
        return [text for texts in VALUES[name][value].values() for text in texts]
    words = {"hair_color": "hair", "background": "background"}.get(name, "fabric")
    return COLORS[words][value]


def texts_of(count: int, name: str = "") -> list[tuple[dict[str, str], dict]]:
    written = []
    for index in range(count):
        rng = random.Random(index)
        shown = hide(random_attributes(rng))
        written.append((shown, write_free_caption(shown, rng, name)))
    return written


def test_the_captions_of_the_data_set_stay_as_they_are():
    records = [make_face("train", index, num_captions=6)[1] for index in range(300)]
    digest = hashlib.sha256(json.dumps(records).encode()).hexdigest()
    assert digest == "e6f9e3af7ede96dde5ca11b9e42d102b24dbc166fe7e8988aa7f84393a33af8c"


def test_free_captions_stay_as_they_are():
    digest = hashlib.sha256(json.dumps(texts_of(1000, "expression")).encode()).hexdigest()
    assert digest == "f73f3e6b7c9a53c9c66c752d7593138fb9b03cb2152428308e84cd1c6029ba0a"


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_every_value_has_words_and_none_of_another_value(name):
    seen: dict[str, str] = {}
    for value in ATTRIBUTES[name]:
        own = set(wordings(name, value))
        assert len(own) >= 7, value
        assert not own & seen.keys(), {text: seen[text] for text in own & seen.keys()}
        seen |= dict.fromkeys(own, value)
    assert len(seen) >= 36  # several dozen for each attribute


def test_a_free_text_states_only_shown_attributes_and_names_the_required_one():
    for shown, text in texts_of(300, "expression"):
        assert "expression" in text["states"]
        assert all(shown[name] != "hidden" for name in text["states"])


def test_no_gap_stays_open():
    for _, text in texts_of(2000):
        assert "{" not in text["text"] and "  " not in text["text"]
        assert not re.search(r"\b(is|are|in)[.!]?$", text["text"]), text["text"]


def test_a_colour_that_is_not_stated_is_not_in_the_text():
    purple = {"purple", "violet", "plum", "mauve", "aubergine", "grape", "amethyst", "purplish"}
    face = random_attributes(random.Random(0)) | {"headwear": "hat", "headwear_color": "purple"}
    shown = hide(face | {"background": "white", "clothes_color": "red"})
    named = 0
    for index in range(300):
        text = write_free_caption(shown, random.Random(index))
        found = set(re.findall(r"[a-z]+", text["text"])) & purple
        if "headwear_color" in text["states"]:
            named += bool(found)
        else:
            assert not found, text
    assert named > 50


def test_free_texts_use_words_and_frames_that_the_captions_lack():
    free = " ".join(text["text"] for _, text in texts_of(1500))
    plain = " ".join(
        make_caption(shown, random.Random(i))["text"] for i, (shown, _) in enumerate(texts_of(1500))
    )
    new = set(re.findall(r"[a-z]+", free)) - set(re.findall(r"[a-z]+", plain))
    assert len(new) > 800
    assert re.search(r"\? no", free) and ". she" in free and " instead of " in free


def test_pronouns_and_verbs_agree():
    for person in PEOPLE:
        assert (person["is"], person["s"]) not in {("is", "they"), ("are", "she"), ("is", "i")}
    free = " ".join(text["text"] for _, text in texts_of(1500))
    assert "they is" not in free and "she are" not in free


def test_typing_errors_change_few_letters():
    rng = random.Random(0)
    text = "a smiling woman with glasses and a yellow turban " * 5
    wrong = misspell(text, rng)
    assert wrong != text
    assert abs(len(wrong) - len(text)) < 15
    assert len(wrong.split()) <= len(text.split()) + 3


def test_a_fact_with_a_colour_names_it_in_every_part_of_speech():
    """A beard that alone shows the colour of the hair names it too."""
    face = random_attributes(random.Random(0)) | {"headwear": "hat", "facial_hair": "beard"}
    shown = hide(face | {"glasses": "none"})
    wanted = {"hair_color", "facial_hair", "clothes", "clothes_color", "headwear_color"}
    facts = gather_facts(shown, wanted, random.Random(0))
    assert len(facts) == 3 and all(fact.color for fact in facts)
    for fact in facts:
        parts = fact.parts("before", "having", "wearing", "doing", "clause")
        assert parts
        for part in parts:
            for seed in range(50):
                assert fact.color in fact.say(part, PEOPLE[0], random.Random(seed))
