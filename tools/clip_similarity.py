"""Measure the CLIP similarity between generated images and their prompts.

Images of t2f.py:      python tools/clip_similarity.py samples/a-man-in-a-turban
Two folders compared:  python tools/clip_similarity.py samples/guidance1 samples/guidance4
Other images:          python tools/clip_similarity.py samples_t2f/72 --prompts prompts.txt
An experiment's CLIP:  python tools/clip_similarity.py samples/x --experiment_dir results/own
Another CLIP:          python tools/clip_similarity.py samples/x --clip ViT-B-32:openai

Prints the mean, greatest and least cosine x 100 between a prompt and its images, for each prompt
and for all images. Images of t2f.py hold their prompt as text in the PNG. With --prompts, images
in description_0/ (or named 00_….png) belong to the first line of the file, and so on. Writes
clip_similarity.json and .csv into --out, with the best and worst image of each prompt.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

# First: from here on, Ctrl-C ends the script with one line.
from utils.base.errors import UserError, note
from utils.base.script import one_line_errors

# isort: split
import torch

from utils.base.files import write_csv, write_json
from utils.base.progress import progress
from utils.base.text import aligned
from utils.config.command_line import ArgumentParser, add_config_option
from utils.data.image_batches import iterate_batches
from utils.data.images import load_image
from utils.evaluation.metrics import clip_similarities
from utils.evaluation.results import Record
from utils.pretrained.effective_config import load_effective_config
from utils.pretrained.encoders import load_config_clip, usable_device
from utils.sampling.image_files import png_text
from utils.sampling.prompts import read_prompts
from utils.sampling.sample_folder import single_images

if TYPE_CHECKING:
    from models.clip import ClipEncoder

ALL = "all prompts"  # label of the row that sums up a folder


class Images(NamedTuple):
    """Images of a folder, each with its prompt."""

    folder: Path
    paths: list[Path]
    prompts: list[str]


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("folders", nargs="+", type=Path, metavar="folder", help="images; several are compared")
    add("--prompts", type=Path, help="text file, a prompt a line; None = prompts in the PNGs")
    add_config_option(parser, "YAML file, whose encoders.clip measures")
    add("--clip", help="CLIP that measures: a folder, a file or name:tag; None = the config's")
    add("--batch_size", type=int, default=64, help="images that are encoded at once")
    add(
        "--device",
        default="cuda" if torch.cuda.is_available() else "cpu",
        help="where to compute, e.g. cpu or cuda:1",
    )
    add("--out", type=Path, default=Path("results/clip_similarity"), help="folder to write into")
    return parser.parse_args()


def find_images(folder: Path, prompts: Sequence[str] | None) -> Images:
    """Find all images below `folder` but the grid, each with its prompt.

    `prompts` are the lines of the file that the images were generated from; None = t2f.py has
    written the prompt into the PNG. Images that t2f.py made of images or mixtures have no prompt;
    they are left out with a note. Raises UserError if there is no image or a prompt is missing.
    """
    paths = [path for _, path in single_images(folder)]
    if prompts is not None:
        found = [prompts[prompt_number(path, folder, len(prompts))] for path in paths]
        return Images(folder, paths, found)
    texts = {path: png_text(path) for path in paths}
    kept = [path for path in paths if not {"image", "mix"} & texts[path].keys()]
    if without := [path for path in kept if "prompt" not in texts[path]]:
        raise UserError(f"{without[0]}: the PNG does not hold its prompt; give --prompts FILE")
    if others := len(paths) - len(kept):
        note(f"{folder}: left out {others} images made of images or mixtures of prompts")
    if not kept:
        raise UserError(f"{folder}: holds no image that was generated from a prompt")
    return Images(folder, kept, [texts[path]["prompt"] for path in kept])


def prompt_number(path: Path, folder: Path, count: int) -> int:
    """Return the number of an image's prompt, from 0 to `count` - 1.

    It is read from the subfolder of `folder`, `description_2/…` or `2/…`, or from the image's name,
    `02_000.png`. With a single prompt it is 0. Raises UserError if there is no such number.
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


def similarities(images: Images, clip: ClipEncoder, batch_size: int) -> torch.Tensor:
    """Return cosine x 100 between each image and its prompt, (N,) float64.

    Images are scaled and cropped to the size of the first one.
    """
    texts = sorted(set(images.prompts))
    if cut := clip.count_truncated(texts):
        note(f"{cut} of {len(texts)} prompts are longer than CLIP reads; their ends are cut off")
    by_text = dict(zip(texts, clip.encode_texts(texts), strict=True))
    side = min(load_image(images.paths[0]).size)
    total = -(-len(images.paths) // batch_size)
    batches = iterate_batches(images.paths, side, batch_size)
    bar = progress(batches, images.folder.name, total, "batch")
    embeddings = torch.cat([clip.encode_images(batch) for batch in bar])
    return clip_similarities(embeddings, torch.stack([by_text[text] for text in images.prompts]))


def summarise(images: Images, scores: torch.Tensor) -> Iterator[Record]:
    """Yield a record for each prompt, in order of its first image, then one for all images.

    `scores`: (N,), the similarity of each image.
    """
    groups: dict[str, list[int]] = {prompt: [] for prompt in images.prompts}
    for i, prompt in enumerate(images.prompts):
        groups[prompt].append(i)
    names = [path.relative_to(images.folder).as_posix() for path in images.paths]
    for prompt, members in [*groups.items(), (ALL, list(range(len(scores))))]:
        part = scores[members]
        yield {
            "folder": str(images.folder),
            "prompt": prompt,
            "n": len(members),
            "mean": round(float(part.mean()), 4),
            "max": round(float(part.max()), 4),
            "min": round(float(part.min()), 4),
            "best": names[members[int(part.argmax())]],
            "worst": names[members[int(part.argmin())]],
        }


def side_by_side(records: Sequence[Record]) -> list[list[str]]:
    """Return the cells of a table: a header, then a row for each prompt.

    Each folder has four columns: number of images, mean, greatest and least similarity.
    """
    folders = list(dict.fromkeys(record["folder"] for record in records))
    prompts = [p for p in dict.fromkeys(r["prompt"] for r in records) if p != ALL]
    known = {(record["folder"], record["prompt"]): record for record in records}
    rows = [["prompt"]]
    for number, _ in enumerate(folders, 1):
        mark = f"({number}) " if len(folders) > 1 else ""
        rows[0] += [f"{mark}images", "mean", "max", "min"]
    for prompt in [*prompts, ALL]:
        row = [prompt if len(prompt) <= 60 else f"{prompt[:59]}…"]
        for folder in folders:
            record = known.get((folder, prompt))
            if record is None:
                row += ["–"] * 4
            else:
                row += [str(record["n"]), *(f"{record[key]:.2f}" for key in ("mean", "max", "min"))]
        rows.append(row)
    return rows


@one_line_errors
def main() -> None:
    """Measure all folders, and print and write the table."""
    args = parse_args()
    if args.batch_size < 1:
        raise UserError("--batch_size must be at least 1")
    device = usable_device(args.device)
    prompts = read_prompts(args.prompts) if args.prompts else None
    found = [find_images(folder, prompts) for folder in dict.fromkeys(args.folders)]
    args.overrides = [f"encoders.clip={args.clip}"] if args.clip else []
    clip = load_config_clip(load_effective_config(args).encoders, device)

    records: list[Record] = []
    for images in found:
        records += summarise(images, similarities(images, clip, args.batch_size))

    print(f"cosine x 100 of image and prompt, {clip.identity}")
    for number, images in enumerate(found, 1):
        print(f"  ({number}) {images.folder}")
    print(f"\n{aligned(side_by_side(records), left=1)}\n")
    write_json(args.out / "clip_similarity.json", {"clip": clip.identity, "records": records})
    write_csv(args.out / "clip_similarity.csv", records)
    print(f"{args.out}/: clip_similarity.json, clip_similarity.csv")


if __name__ == "__main__":
    main()
