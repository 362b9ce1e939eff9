"""A folder of samples holds the images of one run: no earlier ones are mixed in or overwritten."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from utils.base.errors import UserError, note
from utils.base.text import printable
from utils.config.sampling_sections import Sampling
from utils.data.archive_files import read_bytes
from utils.data.image_metadata import texts_of_png
from utils.data.images import Sample, list_images
from utils.sampling.image_files import save_png

SAMPLE_NAME = re.compile(r"\d{2,}_\d{3,}\.png")  # <row>_<seed>.png of t2f.py
# The texts of one image; all others are settings.
OF_ONE_IMAGE = {"seed", "prompt", "image", "image_hash", "embedding", "mix", "edit"}
GRID = "grid.png"  # t2f.py's overview of the images in a folder
ALWAYS_STATED = ("cfg_scale", "num_steps", "solver", "amp")  # in each PNG; others if changed

Texts = Mapping[str, Mapping[str, str]]  # the texts of each PNG of a run, by file name


def settings_text(sampling: Sampling) -> dict[str, str]:
    """Return sampler settings as text: the main ones, and all that differ from the defaults."""
    default = Sampling()
    changed = [
        name
        for name in Sampling.model_fields
        if name not in ("seed", "preview") and getattr(sampling, name) != getattr(default, name)
    ]
    names = dict.fromkeys([*ALWAYS_STATED, *changed])
    return {name: str(getattr(sampling, name)) for name in names}


def file_name(row: int, seed: int) -> str:
    """Return the name of an image's file."""
    return f"{row:02d}_{seed:03d}.png"


@dataclass(frozen=True)
class GeneratedImage:
    """One finished image.

    image: Pillow image, RGB.
    row: index of its row; seed: of its noise.
    text: its sources, seed and settings, as they stand in its PNG.
    """

    image: Image.Image
    row: int
    label: str
    seed: int
    text: dict[str, str]

    @property
    def file_name(self) -> str:
        """Return `<row>_<seed>.png`."""
        return file_name(self.row, self.seed)

    def save(self, path: str | Path) -> None:
        """Write a PNG that carries `text`."""
        save_png(self.image, path, self.text)


def other_runs_fault(folder: Path, texts: Texts, grid: Mapping[str, str]) -> str:
    """Return what an earlier run left in a folder that this run does not make, or nothing.

    texts: those of all images that this run writes. grid: the texts of its grid.
    An image of equal texts is the same image, and may be made again.
    """
    there = sorted(file.name for file in folder.glob("*.png") if SAMPLE_NAME.fullmatch(file.name))
    if not there and (folder / GRID).is_file():  # the images of the grid were moved elsewhere
        there, texts = [GRID], {GRID: grid}
    for name in there:
        if name not in texts:
            return f"{name}, which this run does not make"
        found, wanted = texts_of_png(read_bytes(folder / name)), texts[name]
        keys = [*wanted, *found]
        if name == GRID:
            keys.remove("seed")
        for key in keys:
            ours = printable(wanted[key]) if key in wanted else None
            if found.get(key) != ours:
                theirs, ours = _shortened(found.get(key), ours)
                return f"{name}, whose {key} is {theirs}, here {ours}"
    return ""


def _shortened(*values: str | None) -> list[str]:
    """Return two different values for a message, without most of the text before they differ."""
    start = max(0, len(os.path.commonprefix([value or "" for value in values])) - 20)
    ends = [value if value is None or not start else f"…{value[start:]}" for value in values]
    return [f"{end!r:.60}" for end in ends]


def free_folder(folder: Path, texts: Texts, grid: Mapping[str, str]) -> Path:
    """Return `folder`, or the first of `<folder>-2`, … that holds no images of another run."""
    free, number = folder, 1
    while other_runs_fault(free, texts, grid):
        number += 1
        free = folder.with_name(f"{folder.name}-{number}")
    return free


def single_images(folder: Path) -> list[Sample]:
    """List the images of a folder or archive but the grids of t2f.py; a note names these.

    Raises UserError if images of several runs of t2f.py are mixed.
    """
    samples = list_images(folder)
    grids = [f"{sample.name}.png" for sample in samples if sample.path.name == GRID]
    if grids:
        names = ", ".join(grids[:3])
        more = f" and {len(grids) - 3} more" if len(grids) > 3 else ""
        note(f"{folder}: left out {names}{more}, an overview of images and no single one")
    single = [sample for sample in samples if sample.path.name != GRID]
    _require_one_run(folder, single)
    return single


def _require_one_run(folder: Path, samples: Sequence[Sample]) -> None:
    """Raise UserError if images of t2f.py with different settings, or other images, are mixed."""
    first: tuple[str, dict[str, str]] | None = None
    for sample in samples:
        name = sample.path.name
        text = texts_of_png(read_bytes(sample.path)) if name.endswith(".png") else {}
        # Texts of other programs are their own matter; t2f.py always names its checkpoint.
        is_ours = "checkpoint" in text
        settings = {k: v for k, v in text.items() if is_ours and k not in OF_ONE_IMAGE}
        if first is None:
            first = name, settings
        for key in dict.fromkeys([*first[1], *settings]):
            if first[1].get(key) != settings.get(key):
                one, other = _shortened(first[1].get(key), settings.get(key))
                raise UserError(
                    f"{folder}: holds images of several runs: the {key} of {first[0]} is {one}, "
                    f"that of {name} {other}; give each run a folder of its own"
                )
