"""CLIP similarity of generated pictures and their prompts: prompt of a picture, cosines, table."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from utils.base.errors import UserError, note
from utils.base.progress import progress
from utils.data.image_batches import iterate_batches
from utils.data.images import load_image
from utils.evaluation.metrics import clip_similarities
from utils.evaluation.results import Record
from utils.sampling.image_files import png_text
from utils.sampling.sample_folder import single_images

if TYPE_CHECKING:
    from models.clip import ClipEncoder

ALL = "all prompts"  # label of the row that sums up a folder


@dataclass(frozen=True)
class Pictures:
    """Pictures of a folder, each with its prompt."""

    folder: Path
    paths: list[Path]
    prompts: list[str]  # one for each


def find_images(folder: Path, prompts: Sequence[str] | None) -> Pictures:
    """Find all pictures below `folder` but the grid, each with its prompt.

    `prompts` are the lines of the file that the pictures were drawn from; prompt_number finds the
    line of a picture. With None the prompt is read from the PNG, where t2f.py writes it. Pictures
    drawn from images or mixtures have no prompt; they are left out with a note.
    Raise UserError if the prompt of a picture cannot be found, or if there is no picture.
    """
    paths = [path for _, path in single_images(folder)]
    if prompts is not None:
        found = [prompts[prompt_number(path, folder, len(prompts))] for path in paths]
        return Pictures(folder, paths, found)
    kept, found, others = [], [], 0
    for path in paths:
        text = png_text(path)
        if "image" in text or "mix" in text:
            others += 1
        elif "prompt" in text:
            kept.append(path)
            found.append(text["prompt"])
        else:
            raise UserError(f"{path}: the PNG does not hold its prompt; give --prompts FILE")
    if others:
        note(f"{folder}: left out {others} pictures drawn from images or mixtures of prompts")
    if not kept:
        raise UserError(f"{folder}: holds no picture that was drawn from a prompt")
    return Pictures(folder, kept, found)


def prompt_number(path: Path, folder: Path, count: int) -> int:
    """Return the number of a picture's prompt, from 0 to `count` - 1.

    It is read from the subfolder of `folder`, `description_2/…` or `2/…`, or from the picture's
    name, `02_000.png`. With a single prompt it is 0.
    Raise UserError if neither holds a number, or if the number is not below `count`.
    """
    if count == 1:
        return 0
    inside = path.relative_to(folder)
    match = None
    if len(inside.parts) > 1:
        match = re.fullmatch(r"(?:.*\D)?(\d+)", inside.parts[0])
    match = match or re.fullmatch(r"(\d+)_.*", inside.stem)
    if not match:
        raise UserError(
            f"{path}: the number of its prompt should be in its name, e.g. 02_000.png, or in its "
            "folder, e.g. description_2/; numbers count from 0"
        )
    if int(match[1]) >= count:
        raise UserError(f"{path}: is of prompt {int(match[1])}, but there are only {count}, from 0")
    return int(match[1])


def similarities(pictures: Pictures, clip: ClipEncoder, batch_size: int) -> torch.Tensor:
    """Return cosine x 100 between each picture and its prompt, (N,) float64.

    Pictures are scaled and cropped to the size of the first one.
    """
    texts = sorted(set(pictures.prompts))
    if cut := clip.count_truncated(texts):
        note(f"{cut} of {len(texts)} prompts are longer than CLIP reads; their ends are cut off")
    by_text = dict(zip(texts, clip.encode_texts(texts), strict=True))
    side = min(load_image(pictures.paths[0]).size)
    total = -(-len(pictures.paths) // batch_size)
    batches = iterate_batches(pictures.paths, side, batch_size)
    bar = progress(batches, pictures.folder.name, total, "batch")
    images = torch.cat([clip.encode_images(batch) for batch in bar])
    return clip_similarities(images, torch.stack([by_text[text] for text in pictures.prompts]))


def summarise(pictures: Pictures, scores: torch.Tensor) -> Iterator[Record]:
    """Yield a record for each prompt, in order of its first picture, then one for all pictures.

    scores: (N,), the similarity of each picture.
    """
    groups: dict[str, list[int]] = {prompt: [] for prompt in pictures.prompts}
    for i, prompt in enumerate(pictures.prompts):
        groups[prompt].append(i)
    for prompt, members in [*groups.items(), (ALL, list(range(len(scores))))]:
        part = scores[members]
        best, worst = (members[int(i)] for i in (part.argmax(), part.argmin()))
        yield {
            "folder": str(pictures.folder),
            "prompt": prompt,
            "n": len(members),
            "mean": round(float(part.mean()), 4),
            "max": round(float(part.max()), 4),
            "min": round(float(part.min()), 4),
            "best": pictures.paths[best].relative_to(pictures.folder).as_posix(),
            "worst": pictures.paths[worst].relative_to(pictures.folder).as_posix(),
        }


def side_by_side(records: Sequence[Record]) -> list[list[str]]:
    """Return the cells of a table: a header, then a row for each prompt.

    Each folder has four columns: number of pictures, mean, greatest and least similarity.
    """
    folders = list(dict.fromkeys(record["folder"] for record in records))
    prompts = [p for p in dict.fromkeys(r["prompt"] for r in records) if p != ALL]
    known = {(record["folder"], record["prompt"]): record for record in records}
    header = ["prompt"]
    for number, _ in enumerate(folders, 1):
        mark = f"({number}) " if len(folders) > 1 else ""
        header += [f"{mark}images", "mean", "max", "min"]
    rows = [header]
    for prompt in [*prompts, ALL]:
        row = [prompt if len(prompt) <= 60 else f"{prompt[:59]}…"]
        for folder in folders:
            record = known.get((folder, prompt))
            if record is None:
                row += ["–"] * 4
            else:
                values = [f"{record[key]:.2f}" for key in ("mean", "max", "min")]
                row += [str(record["n"]), *values]
        rows.append(row)
    return rows
