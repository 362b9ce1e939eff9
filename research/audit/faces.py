"""Sentences that each state one attribute of a rendered face."""

from __future__ import annotations

from demo import captions
from demo.make_faces import ATTRIBUTES
from utils.data.celeba_captions import mend_articles

FORMS = {  # of an attribute's value, in its plainest words
    "hair_style": "a person with {}",
    "hair_color": "a person with {} hair",
    "headwear": "a person wearing {}",
    "headwear_color": "a person wearing a {} hat",
    "glasses": "a person with {}",
    "facial_hair": "a person with {}",
    "skin": "a person with {}",
    "expression": "a person, {}",
    "eyes": "a person with {}",
    "clothes": "a person wearing {}",
    "clothes_color": "a person wearing {} clothes",
    "background": "a person on a {} background",
}
WORDS = {
    "hair_style": captions.HAIR_STYLE,
    "hair_color": captions.HAIR_COLOR,
    "headwear": captions.HEADWEAR,
    "headwear_color": captions.FABRIC_COLOR,
    "glasses": captions.GLASSES,
    "facial_hair": captions.FACIAL_HAIR,
    "skin": captions.SKIN,
    "expression": captions.EXPRESSION,
    "eyes": captions.EYES,
    "clothes": captions.CLOTHES,
    "clothes_color": captions.FABRIC_COLOR,
    "background": captions.BACKGROUND,
}


def sentences() -> dict[str, tuple[str, str]]:
    """Return each sentence with the attribute and the value that it states; "none" is left out."""
    found = {}
    for name, values in ATTRIBUTES.items():
        for value in values:
            if value != "none":
                plainest = WORDS[name][value][value == "long straight"]
                words = plainest.replace("{c}", "").replace("  ", " ").strip()
                found[mend_articles(FORMS[name].format(words))] = (name, value)
    return found
