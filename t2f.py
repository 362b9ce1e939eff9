"""Generate faces from sentences, from images, and from mixtures of them.

One sentence:    python t2f.py --prompt "a person with long red hair and round glasses"
Several:         python t2f.py --prompt "a man in a turban" --prompt "a woman in a hat" --num 4
A file, a line each:  python t2f.py --prompts_file prompts.txt --out samples/mine
Your own model:  python t2f.py --prompt "…" --ckpt results/demo/checkpoints/0000900.pt
Certain seeds:   python t2f.py --prompt "…" --seeds 0-7,42
Another place of CLIP: python t2f.py --prompt "…" --ckpt dit.safetensors encoders.clip=FOLDER
Like an image:   python t2f.py --image face.png
A mixture:       python t2f.py --image face.png --prompt "a person with a hat" --mix 0.6,0.4
In four evaluations of the network instead of 18:  python t2f.py --prompt "…" --preset instant
Literal, or freer:  python t2f.py --prompt "a person in a hat" --freedom 0 (or 1)
In five steps from one to the other:  python t2f.py --prompt "…" --prompt "…" --interpolate 5
The same person with glasses, no hat:  python t2f.py --image face.png --add "round glasses" \\
                 --remove "a hat"
… and changed:   python t2f.py --image face.png --from "a person with black hair" \\
                 --to "a person with red hair"
A strip of one person:  python t2f.py --image face.png --vary "hair colour" --vary "a sad person"
… that a seed makes, in five steps:  python t2f.py --prompt "a man" --seed 3 --add "a hat" \\
                 --interpolate 5
Near an image:   python t2f.py --image face.png --prompt "…" --strength 0.6
A part anew:     python t2f.py --image face.png --mask mask.png --prompt "a person in a green hat"
With an adapter: python t2f.py --prompt "…" --adapter my.safetensors (or my.safetensors:0.7)
Not like this:   python t2f.py --prompt "…" --negative "a person with a beard"

Writes one PNG per image, <row>_<seed>.png, and grid.png, which shows all of them with their
sentences. A folder holds the images of one run: another one's are never overwritten or mixed in.
Each prompt and each image has a row, in the order of the command line; with --mix or
--interpolate, each mixture has a row. An image depends only on its seed, its condition, the
weights and the sampler settings.
"""

from __future__ import annotations

import argparse
import functools
import re
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, get_args

# First: from here on, Ctrl-C ends the script with one line.
from utils.base.errors import UserError
from utils.base.script import one_line_errors

# isort: split
from models.choices import Solver
from utils.base.progress import progress
from utils.config.command_line import ArgumentParser, Once, add_config_arguments
from utils.config.parsing import folder_to_write, parse_scale, parse_seeds
from utils.data.images import find_unreadable
from utils.sampling.editing import Edit, sentence_pairs
from utils.sampling.prompts import Row, arrange, image_prompt, read_prompts, text_prompt
from utils.sampling.sample_folder import GRID, GeneratedImage
from utils.sampling.text_to_face import DEMO, DEMO_STUDENT, TextToFace, default_device
from utils.sampling.traits import TRAITS

FROM_CONFIG = "as the checkpoint's config says"
SAMPLER_FLAGS = ("preset", "seed", "cfg_scale", "freedom", "num_steps", "solver")


def parse_args() -> argparse.Namespace:
    """Parse the command line; raises UserError if a count is below one."""
    parser = ArgumentParser(description=__doc__)
    add = parser.add_argument
    add(
        "--prompt", action="append", dest="sources", type=text_prompt, metavar="TEXT",
        help="sentence to generate images for; may be repeated",
    )  # fmt: skip
    add("--prompts_file", type=Path, action=Once, help="text file with one prompt a line")
    add(
        "--image", action="append", dest="sources", type=image_prompt, metavar="FILE",
        help="generate faces like this; may be repeated",
    )  # fmt: skip
    add(
        "--mix", action="append", metavar="W,W",
        help="a row from the mixture of all prompts and images with these weights, which may be "
        "negative; may be repeated",
    )  # fmt: skip
    add(
        "--interpolate",
        type=int,
        metavar="ROWS",
        help="rows from one prompt or image to another, or to its edit by words",
    )
    add_edit_flags(parser)
    add("--num", type=int, help="images per row; None = 16, or 1 of an edit")
    add(
        "--seeds", type=parse_seeds, action=Once,
        help="seeds, e.g. 0-63,100, instead of --num and --seed",
    )  # fmt: skip
    add_sampler_flags(parser)
    add(
        "--ckpt",
        type=Path,
        help=".pt, .safetensors, a folder of --export, or owner/name on the Hugging Face hub; None "
        f"= {DEMO}, or with --preset instant its student, {DEMO_STUDENT}",
    )
    add(
        "--adapter", action="append", metavar="PATH[:W]",
        help="adapter of that network, and how much of it counts, 1 if not given; may be repeated",
    )  # fmt: skip
    add_config_arguments(parser, instead="the one in the checkpoint; published ones hold none")
    add(
        "--out",
        type=folder_to_write,
        help="folder to write into; None = samples/ and the first label, with a number if that "
        "holds another run",
    )
    add("--batch_size", type=int, default=16, help="images sampled at once")
    add("--device", default=default_device(), help="where to compute, e.g. cpu or cuda:1")
    args = parser.parse_intermixed_args()
    edit = edit_of(args)
    require_effect(args, edit)
    if args.negative is not None:
        text_prompt(args.negative, "negative")  # raises
    if args.ckpt is None:
        args.ckpt = Path(DEMO_STUDENT if args.preset == "instant" else DEMO)
    if args.num is None:
        args.num = 1 if edit else 16
    if args.num < 1 or args.batch_size < 1:
        raise UserError("--num and --batch_size must be at least 1")
    return args


def add_edit_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that make an edit of one --image, or of what one --prompt makes; see `Edit`."""
    add = functools.partial(parser.add_argument, action="append", metavar="TEXT")
    add("--add", help="what the person shall have, e.g. round glasses; may be repeated")
    add("--remove", help="what the person shall not have; may be repeated")
    add("--from", dest="before", help='how the person is, for --to; None = "a person"')
    add("--to", dest="after", help='how the person shall be, e.g. "a smiling person"')
    add(
        "--vary",
        help="as --to, with a row for each; may be repeated. These names stand for several: "
        f"{', '.join(TRAITS)}",
    )
    add = functools.partial(parser.add_argument)
    add("--amount", type=float, help="how far words change it; 1 = as far as images with the trait")
    add("--strength", type=float, help="how much of --image is lost: 0 = nothing, 1 = all")
    add(
        "--fresh",
        type=float,
        help="fraction of fresh noise, 0 to 1; None = 0 with words, 1 with a prompt",
    )
    add = functools.partial(parser.add_argument, action=Once)
    add("--mask", type=Path, metavar="FILE", help="image whose white part is made anew")
    add("--negative", metavar="TEXT", help="sentence that images shall not look like")


def edit_of(args: argparse.Namespace) -> Edit | None:
    """Return the edit that the command line asks for; None if it asks for none.

    Raises UserError if its flags do not go together.
    """
    names = ("add", "remove", "vary", "strength", "fresh", "amount", "mask")
    given = {n: getattr(args, n) for n in names if getattr(args, n) is not None}
    if args.before or args.after:
        given["change"] = sentence_pairs(args.before or [], args.after or [])
    if not given:
        return None
    if args.mix:
        raise UserError("an edit takes no --mix")
    sources = args.sources or []
    images = [source for source in sources if source.kind == "image"]
    prompts = [source.value for source in sources if source.kind == "prompt"]
    if args.prompts_file:
        prompts += read_prompts(args.prompts_file)
    return Edit.of(images, prompts, interpolate=args.interpolate, **given)


def require_effect(args: argparse.Namespace, edit: Edit | None) -> None:
    """Raise UserError if a flag changes nothing beside the others that are given."""
    by_words = edit and edit.inside_of_mask(has_prior=True).by_words
    words = "--add, --remove, --to or --vary"
    for name, is_unused, why in (
        ("amount", not by_words, f"is how far words go: give {words}"),
        ("freedom", edit and not (by_words or edit.prompts), f"is of sentences: give {words}"),
        ("num", args.seeds, "is replaced by --seeds: give one of them"),
        ("seed", args.seeds, "is replaced by --seeds: give one of them"),
    ):
        if is_unused and getattr(args, name) not in (None, FROM_CONFIG):
            raise UserError(f"--{name} {why}")
    if edit and edit.by_words and args.freedom in ("0", "0.0"):
        raise UserError(f"{words} need a --freedom above 0, that of their images")


def add_sampler_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of SAMPLER_FLAGS; each sets the key of its name in the `sampling` section."""
    add = functools.partial(parser.add_argument, default=FROM_CONFIG)
    add("--seed", help="seed of the first image; the others follow it")
    add("--cfg_scale", help="guidance scale, or None for no guidance")
    add(
        "--freedom",
        help="how far the prior may leave the sentence, for each seed anew: 0 = literal, one face "
        "for all seeds; 0.7 = shows what the prompt states, and varies all else; 1 = free; auto = "
        "the one that the prior's file proposes",
    )
    add(
        "--preset",
        help="paper (158 evaluations of the network an image), fast (18), fast8 (8), or instant "
        "for students (1 to 4); --num_steps and --solver override it",
    )
    add("--num_steps", help="steps of the sampler")
    add("--solver", help=", ".join(get_args(Solver)))


def rows_to_generate(args: argparse.Namespace) -> list[Row]:
    """Return the conditions that the command line asks for; raises UserError if there are none."""
    sources = list(args.sources or [])
    if args.prompts_file:
        sources += [text_prompt(line) for line in read_prompts(args.prompts_file)]
    return arrange(sources, args.mix or [], args.interpolate)


def check_images(rows: Sequence[Row], edit: Edit | None) -> None:
    """Raise UserError if an image cannot be read, now rather than after all networks are loaded."""
    if edit:
        return edit.check_files()
    for fault in find_unreadable([Path(value) for row in rows for value in row.images]):
        if fault:
            raise fault


def sampler_flags(args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Return each sampler flag that is given, with the config key that it sets and its value.

    Raises UserError if the guidance scale is no number.
    """
    given = {n: getattr(args, n) for n in SAMPLER_FLAGS if getattr(args, n) != FROM_CONFIG}
    if "cfg_scale" in given:
        given["cfg_scale"] = parse_scale(given["cfg_scale"])
    return {f"--{name}": {f"sampling.{name}": value} for name, value in given.items()}


def default_out(label: str) -> Path:
    """Return a folder named after a label."""
    slug = re.sub(r"\W+", "-", label.lower()).strip("-")[:60].rstrip("-")
    return Path("samples") / (slug or "prompt")


def save_images(images: Sequence[GeneratedImage], folder: Path) -> None:
    """Write images into a folder, each under its own name."""
    for image in images:
        image.save(folder / image.file_name)


@one_line_errors
def main() -> None:
    """Generate what the command line asks for; save the images and their grid."""
    started = time.perf_counter()
    args = parse_args()
    edit = edit_of(args)
    rows = edit.rows() if edit else rows_to_generate(args)
    check_images(rows, edit)
    faces = TextToFace.load(
        args.ckpt,
        config=args.config,
        overrides=args.overrides,
        device=args.device,
        flags=sampler_flags(args),
        adapters=args.adapter or (),
    )
    options = {"num": args.num, "seeds": args.seeds, "negative": args.negative}
    generation = faces.start_edit(edit, **options) if edit else faces.start(rows, **options)
    out = args.out or generation.free_folder(default_out(rows[0].label))
    generation.check_folder(out)
    out.mkdir(parents=True, exist_ok=True)  # fails now rather than after the first batch
    # A batch is saved while the next one is sampled. The executor waits for it even after Ctrl-C.
    saved: Future[None] | None = None
    with (
        progress(desc="generate", total=len(generation), unit="image") as bar,
        ThreadPoolExecutor(1) as saver,
    ):
        for images in generation.batches(args.batch_size):
            if saved is not None:
                saved.result()  # raises what went wrong
            saved = saver.submit(save_images, images, out)
            bar.update(len(images))
    if saved is not None:
        saved.result()
    generation.save_grid(out / GRID)
    seconds = time.perf_counter() - started
    print(f"{len(generation)} images in {seconds:.1f} s: {out / GRID}")


if __name__ == "__main__":
    main()
