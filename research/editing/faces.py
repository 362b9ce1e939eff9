"""Twelve edits of held-out rendered faces, whose true result the renderer knows."""

from __future__ import annotations

import random
from dataclasses import dataclass
from itertools import count, islice
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from demo.captions import make_caption
from demo.make_faces import ATTRIBUTES, encode_attributes, hide, make_face, render

PERSON = "a person"


class FaceEdit(NamedTuple):
    """Two sentences, before and after, and the attribute that becomes `value`."""

    before: str
    after: str
    attribute: str
    value: str


EDITS = {
    "round glasses": FaceEdit(PERSON, "a person with round glasses", "glasses", "round"),
    "no glasses": FaceEdit("a person with round glasses", PERSON, "glasses", "none"),
    "sunglasses": FaceEdit(PERSON, "a person with sunglasses", "glasses", "sunglasses"),
    "pink hair": FaceEdit(PERSON, "a person with pink hair", "hair_color", "pink"),
    "red hair": FaceEdit(PERSON, "a person with red hair", "hair_color", "red"),
    "hat": FaceEdit(PERSON, "a person with a hat", "headwear", "hat"),
    "turban": FaceEdit(PERSON, "a person with a turban", "headwear", "turban"),
    "beard": FaceEdit(PERSON, "a person with a beard", "facial_hair", "beard"),
    "no beard": FaceEdit("a person with a beard", PERSON, "facial_hair", "none"),
    "sad": FaceEdit(PERSON, "a sad person", "expression", "sad"),
    "smiling": FaceEdit(PERSON, "a smiling person", "expression", "smiling"),
    "blue background": FaceEdit(
        PERSON, "a person in front of a blue background", "background", "blue"
    ),
}
OTHER_WORDS = {  # for what goes: compared with "a person" in --edits
    "without glasses": FaceEdit(
        "a person with round glasses", "a person without glasses", "glasses", "none"
    ),
    "without a beard": FaceEdit(
        "a person with a beard", "a person without a beard", "facial_hair", "none"
    ),
    "clean-shaven": FaceEdit(
        "a person with a beard", "a clean-shaven person", "facial_hair", "none"
    ),
}
ALL_EDITS = EDITS | OTHER_WORDS
REMOVED = {"glasses": "round", "facial_hair": "beard"}  # the value that becomes "none"
NEEDS_BARE_HEAD = ("hair_color", "headwear")


@dataclass(eq=False)
class Faces:
    """Faces before an edit and after it: images (N, 3, 128, 128) uint8, attributes (N, A) int64.

    captions: one of each face after the edit. wanted: column of the attribute, and its value.
    """

    images: Tensor
    targets: Tensor
    codes: Tensor
    target_codes: Tensor
    captions: list[str]
    wanted: tuple[int, int]

    def shown(self, codes: Tensor) -> Tensor:
        """Return which images with attributes `codes` (N, A) have the wanted one, (N,) bool."""
        return codes[:, self.wanted[0]] == self.wanted[1]

    def kept(self, codes: Tensor) -> Tensor:
        """Return the fraction of the other attributes, visible before and after, that are kept."""
        visible = (self.codes >= 0) & (self.target_codes >= 0)
        visible[:, self.wanted[0]] = False
        return ((codes == self.target_codes) & visible).sum(dim=1) / visible.sum(dim=1)


def fits(name: str, face: dict[str, str]) -> bool:
    """Return True if an edit changes what a face shows."""
    edit = ALL_EDITS[name]
    if edit.attribute in NEEDS_BARE_HEAD and face["headwear"] != "none":
        return False
    now, lacks = face[edit.attribute], edit.value == "none"
    return now == REMOVED[edit.attribute] if lacks else now != edit.value


def faces_of(name: str, first: int, number: int) -> Faces:
    """Render held-out faces that an edit changes, from the `first` one that fits on."""
    edit = ALL_EDITS[name]
    all_faces = (make_face("test", index, 0)[0] for index in count())
    fitting = (face for face in all_faces if fits(name, face))
    before = list(islice(fitting, first, first + number))
    after = [{**face, edit.attribute: edit.value} for face in before]
    codes, target_codes = (
        torch.tensor([encode_attributes(hide(face)) for face in group]) for group in (before, after)
    )
    captions = [
        caption_that_states(edit.attribute, face, random.Random(f"{name}-{i}"))
        for i, face in enumerate(after, start=first)
    ]
    wanted = (list(ATTRIBUTES).index(edit.attribute), ATTRIBUTES[edit.attribute].index(edit.value))
    return Faces(rendered(before), rendered(after), codes, target_codes, captions, wanted)


def caption_that_states(attribute: str, face: dict[str, str], rng: random.Random) -> str:
    """Return a caption of a face, as of a training image, that states an attribute."""
    shown = hide(face)
    captions = (make_caption(shown, rng) for _ in count())
    return next(caption["text"] for caption in captions if attribute in caption["states"])


def rendered(faces: list[dict[str, str]]) -> Tensor:
    """Render faces: (N, 3, 128, 128) uint8."""
    images = [torch.from_numpy(np.array(render(face))) for face in faces]
    return torch.stack(images).permute(0, 3, 1, 2)
