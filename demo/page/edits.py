"""A request that edits a face: its pixels, or the sentence that makes it, and what changes.

    prompt=a+person&seed=3&add=round+glasses&strength=0.8

The keys are the flags of t2f.py. `face` and `mask` hold an image file each in base64; a face has
its name and a colon before it, as `image` has.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode

from PIL import Image

from demo.page.request import (
    ONCE,
    ImageRequest,
    Limits,
    check_length,
    from_base64,
    opened_within,
    parse_pairs,
    whole_number,
)
from models.choices import SEED_LIMIT
from utils.base.errors import UserError, refusing, short_repr
from utils.data.images import upright_rgb
from utils.sampling.editing import Edit, sentence_pairs
from utils.sampling.generation import Generation
from utils.sampling.prompts import Source
from utils.sampling.text_to_face import TextToFace

WORDS = ("add", "remove", "from", "to", "vary")
NUMBERS = ("amount", "strength", "fresh")
IMAGES = ("face", "mask")


@dataclass(frozen=True)
class EditRequest(ImageRequest):
    """A face, or the sentence that makes it, and the fields of `Edit` that change it."""

    pairs: list[tuple[str, str]] = field(default_factory=list)

    @classmethod
    def read(cls, query: str, limits: Limits) -> EditRequest:
        """Read a query string. Raises UserError for every mistake in it, and above the limits."""
        once = (*ONCE, *NUMBERS, *IMAGES)
        pairs = parse_pairs(query, once, ("prompt", *WORDS))
        for key, text in pairs:
            if key in ("prompt", *WORDS):
                check_length(text, limits)
        given = dict(pairs)
        num = whole_number("num", given.get("num", "1"), 1, limits.images)
        seed = whole_number("seed", given.get("seed", "0"), 0, SEED_LIMIT - num)
        if not given.keys() & {"prompt", *WORDS, *NUMBERS, "mask"}:
            raise UserError(
                "nothing to change yet: say what to add, remove or change, or paint over a part"
            )
        return cls([], range(seed, seed + num), cls.settings(given, limits), limits, pairs)

    def start(self, faces: TextToFace) -> Generation:
        """Decode and embed the face; raise UserError like `ImageRequest.start`."""
        edit = self.edit()
        self.check_number(len(edit.rows()))
        generation = faces.start_edit(edit, seeds=self.seeds, **self.sampling)
        self.check_cost(generation)
        return generation

    def edit(self) -> Edit:
        """Return the edit; raise UserError if fields do not go together or a file is no image."""
        given = dict(self.pairs)
        fields: dict[str, Any] = {key: _number(key, given[key]) for key in NUMBERS if key in given}
        fields |= {key: self._all(key) for key in ("add", "remove", "vary") if key in given}
        if "from" in given or "to" in given:
            fields["change"] = sentence_pairs(self._all("from"), self._all("to"))
        if "interpolate" in given:
            most = self.limits.images
            fields["interpolate"] = whole_number("interpolate", given["interpolate"], 2, most)
        if "mask" in given:
            fields["mask"] = self._opened("the mask", given["mask"], as_mask=True)
        images = []
        if "face" in given:
            name, _, code = given["face"].rpartition(":")
            name = name[:80] or "face"
            images = [Source("image", name, name, self._opened(name, code))]
        return Edit.of(images, self._all("prompt"), **fields)

    def link(self, row: int, seed: int) -> str | None:
        """Return the query string that repeats the images; None if it would hold a face."""
        is_long = any(key in IMAGES for key, _ in self.pairs)
        return None if is_long else urlencode(self.pairs)

    def _all(self, key: str) -> list[str]:
        return [text for name, text in self.pairs if name == key]

    def _opened(self, name: str, code: str, as_mask: bool = False) -> Image.Image:
        """Return an image from base64: as it is, or upright RGB."""
        content = from_base64(name, code)
        with opened_within(name, content, self.limits) as image, refusing(f"{name}: is damaged"):
            if not as_mask:
                return upright_rgb(image)
            image.load()
            return image.copy()


def read_request(query: str, limits: Limits) -> ImageRequest:
    """Read what a visitor asks for: an edit if a key of it is there."""
    is_edit = any(f"&{key}=" in f"&{query}" for key in (*WORDS, *NUMBERS, *IMAGES))
    return (EditRequest if is_edit else ImageRequest).read(query, limits)


def _number(key: str, text: str) -> float:
    """Return a number; raise UserError for any other text."""
    try:
        return float(text)
    except ValueError as fault:
        raise UserError(f"{key} {short_repr(text)}: should be a number") from fault
