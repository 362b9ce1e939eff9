"""A request: the images that a visitor asks for, within the limits of the page.

The page, its links and its HTTP API use one form, the query string of a link. Its keys are the
flags of t2f.py, and `image` holds a file's name and its embedding:

    prompt=a+green+hat&prompt=red+hair&mix=0.3,0.7&num=4&seed=0&cfg_scale=2&freedom=0.8

demo/page/edits.py reads requests that change a face.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any
from urllib.parse import parse_qsl, urlencode

import numpy as np
import torch
from PIL import Image

from models.choices import SEED_LIMIT
from models.samplers import nfe
from utils.base.errors import UserError, short_repr
from utils.config.parsing import parse_scale
from utils.data.images import center_crop, opened_image, upright_rgb
from utils.sampling.generate import sampler_settings
from utils.sampling.image_files import png_bytes
from utils.sampling.prompts import Row, Source, arrange, text_prompt
from utils.sampling.sample_folder import GRID, GeneratedImage
from utils.sampling.text_to_face import Generation, TextToFace

# Keys that a request may have once each: settings of `TextToFace.start`, and three others.
SETTINGS = ("preset", "solver", "num_steps", "cfg_scale", "freedom", "negative")
ONCE = ("interpolate", "num", "seed", *SETTINGS)
REPEATED = ("prompt", "image", "mix")


@dataclass(frozen=True)
class Limits:
    """The most that one visitor may ask for at once."""

    images: int = 64
    evaluations: int = 6000  # of the network, over all images; guidance doubles them
    steps: int = 1000  # of an image
    sources: int = 16  # sentences and images
    characters: int = 600  # of a sentence
    query_bytes: int = 4_000_000  # a face and its mask included
    upload_bytes: int = 20_000_000
    upload_pixels: int = 25_000_000  # of an image: decoding takes some 12 bytes for each
    waiting: int = 20  # requests in the queue


@dataclass(frozen=True)
class ImageRequest:
    """Rows times seeds, and the sampler settings given."""

    rows: list[Row]
    seeds: range
    sampling: dict[str, Any]
    limits: Limits

    @classmethod
    def read(cls, query: str, limits: Limits) -> ImageRequest:
        """Read a query string. Raises UserError for every mistake in it, and above the limits."""
        pairs = parse_pairs(query, ONCE, REPEATED)
        once = dict(pair for pair in pairs if pair[0] in ONCE)
        num = whole_number("num", once.get("num", "1"), 1, limits.images)
        seed = whole_number("seed", once.get("seed", "0"), 0, SEED_LIMIT - num)
        steps = once.get("interpolate")
        most = limits.images
        between = None if steps is None else whole_number("interpolate", steps, 2, most)
        sampling = cls.settings(once, limits)
        sources = [_source(key, text, limits) for key, text in pairs if key in ("prompt", "image")]
        if not sources:
            raise UserError("nothing to generate yet: write a sentence or add an image")
        if len(sources) > limits.sources:
            raise UserError(
                f"{len(sources)} sentences and images; the page takes up to {limits.sources}"
            )
        rows = arrange(sources, [text for key, text in pairs if key == "mix"], between)
        request = cls(rows, range(seed, seed + num), sampling, limits)
        request.check_number(len(rows))
        return request

    @staticmethod
    def settings(given: Mapping[str, str], limits: Limits) -> dict[str, Any]:
        """Return the settings among the keys that are given."""
        sampling: dict[str, Any] = {key: text for key, text in given.items() if key in SETTINGS}
        if "num_steps" in sampling:
            whole_number("num_steps", sampling["num_steps"], 1, limits.steps)
        if "cfg_scale" in sampling:
            sampling["cfg_scale"] = parse_scale(sampling["cfg_scale"])
        check_length(sampling.get("negative", ""), limits)
        return sampling

    def check_number(self, rows: int) -> None:
        """Raise UserError if so many rows are more images than the page generates at once."""
        num, most = len(self.seeds), self.limits.images
        if rows * num > most:
            raise UserError(
                f"{rows} times {num} images are {rows * num}; the page generates up to {most} "
                "at once"
            )

    def start(self, faces: TextToFace) -> Generation:
        """Embed the rows; raise UserError if a setting is wrong or the images cost too much."""
        generation = faces.start(self.rows, seeds=self.seeds, **self.sampling)
        self.check_cost(generation)
        return generation

    def check_cost(self, generation: Generation) -> None:
        """Raise UserError if images run the network more often than the page allows."""
        settings = generation.sampling
        each = nfe(sampler_settings(settings)) * (1 if settings.cfg_scale is None else 2)
        if each * len(generation) > self.limits.evaluations:
            raise UserError(
                f"{len(generation)} images of {settings.num_steps} steps ({settings.solver}) run "
                f"the network {each * len(generation)} times; the page allows "
                f"{self.limits.evaluations}: ask for fewer images or steps"
            )

    def notes(self, faces: TextToFace) -> list[str]:
        """Return a line for each sentence whose end CLIP does not read."""
        sources = dict.fromkeys(source for row in self.rows for source, _ in row.parts)
        texts = [source.value for source in sources if source.kind == "prompt"]
        return [
            f"CLIP reads only the first {faces.clip.context_length} tokens of “{text[:40]}…”"
            for text in texts
            if faces.clip.count_truncated([text])
        ]

    def link(self, row: int, seed: int) -> str | None:
        """Return the query string that repeats one image, or None if there is none."""
        parts = self.rows[row].parts
        pairs = [_pair(source) for source, _ in parts]
        if len(parts) > 1:
            pairs.append(("mix", ",".join(repr(weight) for _, weight in parts)))
        return urlencode([*pairs, ("num", 1), ("seed", seed), *self.sampling.items()])

    def messages(self, faces: TextToFace, batch_size: int) -> Generator[dict[str, Any]]:
        """Generate; yield rows and seeds first, then each image, then the grid of several.

        A PNG holds its settings, and under `link` the query string that repeats it.
        Raises UserError like `start`.
        """
        generation = self.start(faces)
        labels = [row.label for row in generation.rows]
        yield {"rows": labels, "seeds": generation.seeds, "notes": self.notes(faces)}
        for images in generation.batches(batch_size):
            for image in images:
                yield {"image": self._image(image)}
        if len(generation) > 1:
            png = png_bytes(generation.grid(), generation.text)
            yield {"grid": {"name": GRID, "png": base64_text(png)}}

    def _image(self, image: GeneratedImage) -> dict[str, Any]:
        link = self.link(image.row, image.seed)
        png = png_bytes(image.image, image.text | ({"link": f"?{link}"} if link else {}))
        place = {"row": image.row, "seed": image.seed, "name": image.file_name}
        return {**place, "link": link, "png": base64_text(png)}


def read_upload(faces: TextToFace, name: str, content: bytes, limits: Limits) -> dict[str, str]:
    """Return what the page keeps of an uploaded image.

    `image`: the value of the link's key; `thumbnail`: a PNG of the pixels that CLIP sees.
    Raises UnreadableImage (a UserError) if it is no image, and UserError if it is too large.
    """
    name = PurePath(name).name[:80] or "image"
    with opened_within(name, content, limits) as image:
        square = center_crop(upright_rgb(image), faces.config.data.resolution)
    (y,) = faces.embed(square)
    value = f"{name}:{base64_text(y.cpu().numpy().astype('<f4').tobytes())}"
    return {"image": value, "name": name, "thumbnail": base64_text(png_bytes(square))}


@contextmanager
def opened_within(name: str, content: bytes, limits: Limits) -> Iterator[Image.Image]:
    """Open an image file; raise UserError if it is none, or has more pixels than the page takes."""
    with opened_image(name, content) as image:
        if image.width * image.height > limits.upload_pixels:
            raise UserError(
                f"{name}: has {image.width} × {image.height} pixels; the page takes images of up "
                f"to {limits.upload_pixels / 1e6:.0f} megapixels"
            )
        yield image


def parse_pairs(query: str, once: Sequence[str], repeated: Sequence[str]) -> list[tuple[str, str]]:
    """Return keys and values of a query string.

    Raises UserError for unknown keys, and for those of `once` that are given twice.
    """
    try:
        pairs = parse_qsl(query, keep_blank_values=True, max_num_fields=100)
    except ValueError as fault:
        raise UserError("the request has more than 100 parts; ask for less") from fault
    for key in dict.fromkeys(key for key, _ in pairs):
        if key not in (*once, *repeated):
            raise UserError(f"{short_repr(key)}: unknown key; use {', '.join((*repeated, *once))}")
        if key in once and sum(name == key for name, _ in pairs) > 1:
            raise UserError(f"{key} is given twice; give it once")
    return pairs


def check_length(text: str, limits: Limits) -> None:
    """Raise UserError if a sentence is longer than the page takes."""
    if len(text) > limits.characters:
        raise UserError(
            f"the sentence “{text[:30]}…” has {len(text)} characters; the page takes up to "
            f"{limits.characters}"
        )


def whole_number(key: str, text: str, least: int, most: int) -> int:
    """Return a whole number between two others; raise UserError for any other text."""
    number = int(text) if text.isascii() and text.isdigit() and len(text) < 20 else -1
    if not least <= number <= most:
        raise UserError(f"{key} {short_repr(text)}: should be a whole number, {least} to {most}")
    return number


def _source(key: str, text: str, limits: Limits) -> Source:
    """Return a sentence or an image's embedding as a source; raise UserError if it is neither."""
    if key == "prompt":
        check_length(text, limits)
        return text_prompt(text)
    name, _, code = text.rpartition(":")
    damaged = f"image {short_repr(name)}: the link is damaged; copy it again, or add the image"
    try:
        y = torch.from_numpy(np.frombuffer(from_base64(name, code), "<f4").astype(np.float32))
    except (UserError, ValueError) as fault:
        raise UserError(damaged) from fault
    return Source("embedding", f"{name} ({code[:12]})", name, y)


def _pair(source: Source) -> tuple[str, str]:
    """Return a source as key and value of a link; `_source` reads it."""
    if isinstance(source.content, torch.Tensor):
        return "image", f"{source.label}:{base64_text(source.content.numpy().tobytes())}"
    return "prompt", source.value


def from_base64(name: str, text: str) -> bytes:
    """Return the bytes of a text in base64, in either of its alphabets; raise UserError."""
    try:
        return base64.b64decode(text.replace("+", "-").replace("/", "_"), b"-_", validate=True)
    except (binascii.Error, ValueError) as fault:
        raise UserError(f"{name}: is no base64; send it again") from fault


def base64_text(content: bytes) -> str:
    """Return bytes in base64's alphabet for links."""
    return base64.urlsafe_b64encode(content).decode()
