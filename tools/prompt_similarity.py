"""How well generated pictures show their prompts: which prompt a picture has, and the cosines."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from models.clip import ClipEncoder
from utils.base.errors import UserError, note
from utils.base.progress import progress
from utils.data.image_batches import iterate_batches
from utils.data.images import list_images, load_image
from utils.evaluation.metrics import clip_similarities
from utils.evaluation.results import Record
from utils.sampling.pictures import png_text

GRID = "grid.png"  # t2f.py's overview of a folder, which is not a picture of its own
ALL = "all prompts"


@dataclass(frozen=True)
class Pictures:
    """The pictures of a folder that have a prompt, and which."""

    folder: Path
    paths: list[Path]
    prompts: list[str]  # one for each


def find_pictures(folder: Path, prompts: Sequence[str] | None) -> Pictures:
    """The pictures below `folder`, the grid aside, each with its prompt.

    `prompts`: the lines of the file they were drawn from; a picture's is found by number (see
    prompt_number). None: the prompt stands in the PNG, as t2f.py writes it; pictures drawn from
    images or mixtures have no sentence of their own and are left out, and this is said.
    Raises UserError if a picture's prompt cannot be found, or there is no picture.
    """
    paths = [path for _, path in list_images(folder) if path.name != GRID]
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
            raise UserError(f"{path}: does not say from which prompt it is; give --prompts FILE")
    if others:
        note(f"{folder}: left out {others} pictures drawn from images or mixtures of prompts")
    if not kept:
        raise UserError(f"{folder}: holds no picture that was drawn from a prompt")
    return Pictures(folder, kept, found)


def prompt_number(path: Path, folder: Path, count: int) -> int:
    """Which of `count` prompts, counted from 0, the picture `path` below `folder` is of.

    By its subfolder, `description_2/…` or `2/…`; else by its name, `02_000.png`. UserError if
    neither says a number below `count`; with a single prompt all pictures are of it.
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
            f"{path}: which prompt it is of should be told by its name, as in 02_000.png, or by "
            "its folder, as in description_2/; numbers count from 0"
        )
    if int(match[1]) >= count:
        raise UserError(f"{path}: is of prompt {int(match[1])}, but there are only {count}, from 0")
    return int(match[1])


def similarities(pictures: Pictures, clip: ClipEncoder, batch_size: int) -> torch.Tensor:
    """Cosine x 100 of each picture and its prompt, (N,) float64.

    All pictures of a folder are brought to the size of its first, which they should have anyway.
    """
    texts = sorted(set(pictures.prompts))
    if cut := clip.count_truncated(texts):
        note(f"{cut} of {len(texts)} prompts are longer than CLIP reads; their ends are cut off")
    by_text = dict(zip(texts, clip.encode_texts(texts), strict=True))
    side = min(load_image(pictures.paths[0]).size)
    total = -(-len(pictures.paths) // batch_size)
    batches = iterate_batches(pictures.paths, side, batch_size)
    bar = progress(batches, pictures.folder.name, total, "batches")
    images = torch.cat([clip.encode_images(batch) for batch in bar])
    return clip_similarities(images, torch.stack([by_text[text] for text in pictures.prompts]))


def summarise(pictures: Pictures, scores: torch.Tensor) -> Iterator[Record]:
    """A record for each prompt, in order of its first picture, then one for all of them."""
    groups = {prompt: [] for prompt in pictures.prompts}
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
    """Cells of a table: a row for each prompt, three columns for each folder, a header first."""
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
            figures = [f"{record[key]:.2f}" for key in ("mean", "max", "min")] if record else []
            row += [str(record["n"]), *figures] if record else ["–"] * 4
        rows.append(row)
    return rows
