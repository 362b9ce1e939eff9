"""Sources of an image: prompts, images, embeddings, and mixtures of them by weight."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image

from models.choices import SEED_LIMIT
from utils.base.errors import UserError, refusing, short_repr
from utils.base.text import BOM, decoded, is_visible, lines_of, printable
from utils.config.parsing import parse_seeds, seeds_from
from utils.config.sampling_sections import Sampling
from utils.data.archive_files import read_bytes
from utils.data.images import upright_rgb

MAX_IMAGES = 1_000_000  # of one generation; more are a slip of the pen
Seeds = str | int | Sequence[int] | None


@dataclass(frozen=True)
class Source:
    """A sentence or an image, from which CLIP makes an embedding, or an embedding itself."""

    kind: Literal["prompt", "image", "embedding"]
    value: str  # the sentence, the path of the image, or a hash of what `content` holds
    label: str  # for people: the sentence, or the image's file name
    content: Image.Image | torch.Tensor | None = field(default=None, compare=False, repr=False)

    @cached_property
    def hash(self) -> str:
        """A short hash of an image: of its file as it is at the first call, or of its pixels."""
        if isinstance(self.content, Image.Image):
            return digest(self.content.tobytes())
        return digest(read_bytes(Path(self.value)))


@dataclass(frozen=True)
class Row:
    """One condition: sources with their weights, which are non-zero and sum to one.

    edit: what words change in the image that is the only source.
    """

    parts: tuple[tuple[Source, float], ...]
    edit: str = ""

    @property
    def label(self) -> str:
        """`0.3 × red hair + 0.7 × face.png`, or the label alone for a single source."""
        if len(self.parts) == 1:
            return f"{self.parts[0][0].label} {self.edit}".strip()
        text = " ".join(f"{'−' if w < 0 else '+'} {abs(w):.2g} × {s.label}" for s, w in self.parts)
        return text.removeprefix("+ ")

    @property
    def images(self) -> list[str]:
        """Values of the images among the sources."""
        return [source.value for source, _ in self.parts if source.kind == "image"]


def text_prompt(text: str, name: str = "the prompt") -> Source:
    """Return a sentence as a source; UserError if it shows nothing, or is not UTF-8 text.

    name: of the sentence, for messages.
    """
    with contextlib.suppress(UnicodeError):  # UTF-8 on the command line of an ASCII locale
        text = text.encode("utf-8", "surrogateescape").decode("utf-8")
    if "\0" in text or printable(text) != text:
        raise UserError(
            f"{name} {short_repr(text)} is not UTF-8 text; set the terminal to UTF-8, or write "
            "it into a UTF-8 file and give --prompts_file"
        )
    if not is_visible(text):
        raise UserError(f"{name} is empty; say what to generate")
    text = text.strip().strip(BOM).strip()
    return Source("prompt", text, text)


def image_prompt(path: str) -> Source:
    """Return an image file as a source; UserError if it is a folder.

    The file is read later.
    """
    if not path.strip():
        raise UserError("image: its path is empty; name an image")
    if Path(path).is_dir():
        raise UserError(f"{path}: is a folder; name an image in it")
    return Source("image", path, printable(Path(path).name))


def as_source(given: object) -> Source:
    """Return a source: a sentence, the `Path` of an image, a Pillow image, or an embedding (D,).

    Raises UserError for anything else, for an empty sentence, and for a damaged image.
    """
    if isinstance(given, Source):
        return given
    if isinstance(given, str):
        return text_prompt(given)
    if isinstance(given, Path):
        return image_prompt(str(given))
    if isinstance(given, Image.Image):
        with refusing("the image cannot be decoded; repair it or give another"):
            pixels = upright_rgb(given)
        name = f"image {digest(pixels.tobytes())}"
        label = Path(getattr(given, "filename", "") or name).name
        return Source("image", name, label, pixels)
    if isinstance(given, torch.Tensor) and given.ndim == 1 and given.is_floating_point():
        y = given.detach().float().cpu()
        name = f"embedding {digest(y.numpy().tobytes())}"
        return Source("embedding", name, name, y)
    raise UserError(
        f"{short_repr(given)}: should be a sentence, a pathlib.Path of an image, a Pillow image or "
        "an embedding, a tensor of one dimension"
    )


def digest(content: bytes) -> str:
    """Return a short hash of some bytes."""
    return hashlib.sha256(content).hexdigest()[:8]


def read_prompts(path: Path) -> list[str]:
    """Return the stripped lines of a text file without blank ones.

    Raises UserError if the file cannot be read, is no UTF-8 text, or has no prompt.
    """
    try:
        content = path.read_bytes()
    except OSError as fault:
        raise UserError(f"{path}: cannot be read as a text file ({fault})") from fault
    lines = lines_of(decoded(content, path))
    if not lines:
        raise UserError(f"{path}: holds no prompt; write one a line")
    return lines


def arrange(
    sources: Sequence[Source],
    mixes: Sequence[str | Sequence[float]] = (),
    steps: int | None = None,
) -> list[Row]:
    """Return the rows to generate: each source; or each of `mixes`; or `steps` between two sources.

    mixes: weights, for example '0.3,0.7' or (0.3, 0.7), one for each source; only their ratios
        count.
    steps: number of rows from the first source to the second one, both included.
    Raises UserError if there is no source, or weights or steps do not fit the sources.
    """
    if not sources:
        raise UserError(
            'say what to generate: --prompt "a person with red hair", --prompts_file F or --image F'
        )
    # Images of one name in different folders are labelled with their paths.
    labels = [source.label for source in dict.fromkeys(sources)]
    sources = [replace(s, label=s.value) if labels.count(s.label) > 1 else s for s in sources]
    if mixes and steps is not None:
        raise UserError("mix and interpolate exclude each other")
    if steps is not None:
        if len(sources) != 2:
            raise UserError(f"interpolate goes between two prompts or images, not {len(sources)}")
        if not 2 <= steps <= MAX_IMAGES:
            raise UserError(
                f"interpolate {steps}: should be at least 2, both ends included, and at most "
                f"{MAX_IMAGES}"
            )
        weights = [[1 - t, t] for t in np.linspace(0, 1, steps).tolist()]
    elif mixes:
        weights = [parse_weights(text, len(sources)) for text in mixes]
    else:
        return [Row(((source, 1.0),)) for source in sources]
    pairs = [zip(sources, row, strict=True) for row in weights]
    return [Row(tuple((source, weight) for source, weight in row if weight)) for row in pairs]


def parse_weights(given: str | Sequence[float], count: int) -> list[float]:
    """Return `count` weights divided by their sum.

    Raises UserError if they are not `count` numbers, or their sum is not above zero.
    """
    try:
        parts = given.split(",") if isinstance(given, str) else list(given)
        weights = [float(part) for part in parts]
        text = given if isinstance(given, str) else ",".join(f"{weight:g}" for weight in weights)
    except (TypeError, ValueError):
        weights, text = [math.nan], short_repr(given)
    if not all(map(math.isfinite, weights)):
        raise UserError(f"mix {text}: should be numbers, e.g. 0.3,0.7")
    if len(weights) != count:
        raise UserError(
            f"mix {text}: number of weights is {len(weights)}, but there are {count} prompts "
            "and images; give each a weight, in their order"
        )
    total = sum(weights)
    if total < 1e-6:
        raise UserError(f"mix {text}: the weights sum to {total:g}; should be more than zero")
    return [weight / total for weight in weights]


def describe(rows: Sequence[Row]) -> dict[str, str]:
    """Return PNG text chunks that name the sources of rows.

    `prompt`, `image` and `embedding` hold one source a line, `edit` what words change in each row.
    `image_hash` holds a line for each image if one of them is a file.
    `mix` is there if any row is a mixture; it holds a line of JSON for each row: its sources in
    order with their weights.
    """
    sources = dict.fromkeys(source for row in rows for source, _ in row.parts)
    text = {}
    for kind in ("prompt", "image", "embedding"):
        if values := [source.value for source in sources if source.kind == kind]:
            text[kind] = "\n".join(values)
    images = [source for source in sources if source.kind == "image"]
    if any(source.content is None for source in images):
        text["image_hash"] = "\n".join(source.hash for source in images)
    if any(row.edit for row in rows):
        text["edit"] = "\n".join(row.edit for row in rows)
    if any(len(row.parts) > 1 for row in rows):
        parts = [[{s.kind: s.value, "weight": w} for s, w in row.parts] for row in rows]
        text["mix"] = "\n".join(json.dumps(row, ensure_ascii=False) for row in parts)
    return text


def as_rows(sources: Any, mix: Any = None, interpolate: int | None = None) -> list[Row]:
    """Return the rows that `TextToFace.start` describes; raise UserError for every mistake."""
    if isinstance(sources, Mapping):
        sources = [replace(as_source(given), label=str(name)) for name, given in sources.items()]
    several = list(sources) if isinstance(sources, list | tuple) else [sources]
    if several and all(isinstance(row, Row) for row in several):
        return several
    return arrange([as_source(source) for source in several], as_mixes(mix), interpolate)


def as_mixes(mix: Any) -> list[Any]:
    """Return a list of mixtures: of one, e.g. "1,2" or (1, 2), or of several."""
    if mix is None:
        return []
    is_one = isinstance(mix, str | Real) or (len(mix) and all(isinstance(w, Real) for w in mix))
    return [mix] if is_one else list(mix)


def resolve_seeds(seeds: Seeds, num: int, sampling: Sampling, rows: int = 1) -> list[int]:
    """Return the given seeds, or `num` seeds from `sampling.seed` on.

    Raises UserError if there is none, if one is no whole number in [0, 2^32), or if so many rows of
    them are more than MAX_IMAGES.
    """
    numbers = _seeds(seeds, num, sampling)
    if rows * len(numbers) > MAX_IMAGES:
        raise UserError(f"{rows} rows of {len(numbers)} images are too many; ask for less")
    return numbers


def _seeds(seeds: Seeds, num: int, sampling: Sampling) -> list[int]:
    if isinstance(seeds, str):
        return parse_seeds(seeds)
    if seeds is None:
        if not 1 <= num <= MAX_IMAGES:
            raise UserError(f"num is {num}; should be at least 1 and at most {MAX_IMAGES}")
        return list(seeds_from(sampling.seed, num))
    try:
        given: list[Any] = list(seeds)  # type: ignore[arg-type]
    except TypeError:
        given = [seeds]
    numbers = [int(seed) for seed in given if isinstance(seed, Integral)]
    if len(numbers) < max(len(given), 1) or not 0 <= min(numbers) <= max(numbers) < SEED_LIMIT:
        raise UserError(f"seeds {short_repr(seeds)}: should be whole numbers from 0 to 2^32 - 1")
    return numbers
