"""Draw faces from sentences, from images, and from mixtures of them.

One sentence:    python t2f.py --prompt "a person with long red hair and round glasses"
Several:         python t2f.py --prompt "a bald man" --prompt "a woman with a green hat" --num 8
A file, a line each:  python t2f.py --prompts_file prompts.txt --out samples/mine
Your own model:  python t2f.py --prompt "…" --ckpt results/demo/checkpoints/0000900.pt
Certain seeds:   python t2f.py --prompt "…" --seeds 0-7,42
Another place of CLIP: python t2f.py --prompt "…" --ckpt dit.safetensors encoders.clip=FOLDER
Like an image:   python t2f.py --image face.png
A mixture:       python t2f.py --image face.png --prompt "a person with a hat" --mix 0.6,0.4
In five steps from one to the other:  python t2f.py --prompt "…" --prompt "…" --interpolate 5

Writes one PNG per picture, <row>_<seed>.png, and grid.png, which shows all of them with their
sentences. Each prompt and each image has a row, in the order of the command line; with --mix or
--interpolate, each mixture has a row. A picture depends only on its seed, its condition, the
weights and the sampler settings.
"""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, get_args

# First: from here on, Ctrl-C ends the script with one line.
from utils.base.errors import UserError, one_line_errors

# isort: split
import numpy as np
import torch

from models.choices import Solver
from models.edm import EDMPrecond
from utils.base.progress import progress
from utils.config.command_line import HelpFormatter, add_config_arguments
from utils.config.load import config_from_dict
from utils.config.parsing import parse_scale, parse_seeds
from utils.config.schema import Config
from utils.config.sections import SAMPLING_PRESETS
from utils.data.derived_sizes import with_derived_sizes
from utils.pretrained.chosen_config import config_file, read_config
from utils.pretrained.denoisers import load_denoiser
from utils.pretrained.encoder_paths import here_or_in_project
from utils.pretrained.encoders import (
    load_config_autoencoder,
    load_config_clip,
    require_encoders,
    usable_device,
)
from utils.sampling.compile import compile_for_sampling
from utils.sampling.conditions import Conditions, embed_rows
from utils.sampling.generate import generate, sampler_settings
from utils.sampling.pictures import GRID, labelled_grid, save_png
from utils.sampling.prompts import Row, arrange, describe, image_prompt, read_prompts, text_prompt

if TYPE_CHECKING:
    from models.clip import ClipEncoder

FROM_CONFIG = "as the checkpoint's config says"
MAX_COLUMNS = 8  # of a grid whose rows have one picture each


def parse_args() -> argparse.Namespace:
    """Parse the command line; raises UserError if a count is below one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument(
        "--prompt", action="append", dest="sources", help="what to draw; may be given repeatedly",
        type=text_prompt, metavar="TEXT",
    )  # fmt: skip
    parser.add_argument("--prompts_file", type=Path, help="text file with one prompt a line")
    parser.add_argument(
        "--image", action="append", dest="sources", help="draw faces like this; may be repeated",
        type=image_prompt, metavar="FILE",
    )  # fmt: skip
    parser.add_argument(
        "--mix", action="append", default=None, metavar="W,W",
        help="draw a row from the mixture of all prompts and images with these weights; may be "
        "given repeatedly; write a negative first weight as --mix=-0.5,1.5",
    )  # fmt: skip
    parser.add_argument(
        "--interpolate", type=int, metavar="ROWS", help="rows from one prompt or image to another"
    )
    parser.add_argument("--num", type=int, default=16, help="pictures per row")
    parser.add_argument(
        "--seed", default=FROM_CONFIG, help="seed of the first picture; the others follow it"
    )
    parser.add_argument(
        "--seeds", type=parse_seeds, help="seeds, e.g. 0-63,100, instead of --num and --seed"
    )
    parser.add_argument(
        "--cfg_scale", default=FROM_CONFIG, help="guidance scale, or None for no guidance"
    )
    parser.add_argument(
        "--preset",
        choices=SAMPLING_PRESETS,
        help="fast, or paper (40 Heun steps in float32); --num_steps and --solver override it; "
        f"None = {FROM_CONFIG}",
    )
    parser.add_argument("--num_steps", default=FROM_CONFIG, help="noise levels of the sampler")
    # Not `choices`: argparse would answer a wrong name with several lines.
    parser.add_argument("--solver", default=FROM_CONFIG, help=f"{', '.join(get_args(Solver))}")
    parser.add_argument(
        "--ckpt", type=Path, default=Path("assets/demo/dit.safetensors"), help=".pt or .safetensors"
    )
    add_config_arguments(parser, instead="the one in the checkpoint; published ones hold none")
    parser.add_argument(
        "--out", type=Path, help="folder to write into; None = samples/ and the first label"
    )
    parser.add_argument("--batch_size", type=int, default=16, help="pictures drawn at once")
    parser.add_argument(
        "--device",
        default="cuda" if torch.cuda.is_available() else "cpu",
        help="where to compute, e.g. cpu or cuda:1",
    )
    args = parser.parse_intermixed_args()
    if args.num < 1 or args.batch_size < 1:
        raise UserError("--num and --batch_size must be at least 1")
    return args


def rows_to_draw(args: argparse.Namespace) -> list[Row]:
    """Return the conditions that the command line asks for; raises UserError if there are none."""
    sources = list(args.sources or [])
    if args.prompts_file:
        sources += [text_prompt(line) for line in read_prompts(args.prompts_file)]
    return arrange(sources, args.mix or [], args.interpolate)


def whole_number(args: argparse.Namespace, name: str) -> int:
    """Return the value of a flag; raises UserError if it is not a whole number."""
    text = getattr(args, name)
    if not re.fullmatch(r"\d+", text):
        raise UserError(f"--{name} {text}: should be a whole number")
    return int(text)


def with_sampling(config: Config, args: argparse.Namespace) -> Config:
    """Return the checkpoint's config with the sampler settings of the command line.

    Raises UserError if the settings are wrong or do not go together.
    """
    changes: dict[str, object] = {}
    if args.preset:
        preset = [f"sampling.preset={args.preset}"]
        config = config_from_dict(config.to_dict(), str(args.ckpt), preset)
    for name in ("seed", "num_steps"):
        if getattr(args, name) != FROM_CONFIG:
            changes[name] = whole_number(args, name)
    if args.cfg_scale != FROM_CONFIG:
        changes["cfg_scale"] = parse_scale(args.cfg_scale)
    if args.solver != FROM_CONFIG:
        changes["solver"] = args.solver
    sampling = config.sampling.model_copy(update=changes)
    sampler_settings(sampling)  # raises now rather than when the first batch is drawn
    return config.model_copy(update={"sampling": sampling})


def check_width(denoiser: EDMPrecond, clip: ClipEncoder, config: Config, ckpt: Path) -> None:
    """Raise UserError if the denoiser does not take the embeddings of this CLIP."""
    if clip.dim != denoiser.model.cond_width:
        raise UserError(
            f"{ckpt}: takes conditions of {denoiser.model.cond_width} numbers, but "
            f"{config.encoders.clip} gives {clip.dim}; it was trained with another CLIP"
        )


def default_out(label: str) -> Path:
    """Return a folder named after a label."""
    slug = re.sub(r"\W+", "-", label.lower()).strip("-")[:60].rstrip("-")
    return Path("samples") / (slug or "prompt")


def save_pictures(
    batches: Iterator[tuple[range, torch.Tensor]],
    rows: Sequence[Row],
    jobs: Sequence[tuple[int, int]],
    folder: Path,
    about: Mapping[str, str],
) -> np.ndarray:
    """Save a PNG for each job when its batch is finished; return all pictures (N, H, W, 3) uint8.

    batches: from `generate`, with positions in `jobs`.
    jobs: for each picture the number of its row, and its seed.
    about: text chunks of every PNG.
    """
    pictures = []
    with progress(desc="draw", total=len(jobs), unit="image") as bar:
        for positions, images in batches:
            for position, image in zip(positions, images.numpy(), strict=True):
                r, seed = jobs[position]
                text = {**describe([rows[r]]), "seed": str(seed), **about}
                save_png(image, folder / f"{r:02d}_{seed:03d}.png", text)
                pictures.append(image)
            bar.update(len(positions))
    return np.stack(pictures)


def save_grid(
    pictures: np.ndarray,
    conditions: Conditions,
    seeds: Sequence[int],
    path: Path,
    about: Mapping[str, str],
) -> None:
    """Write all pictures (rows × seeds, H, W, 3) as one PNG; a title replaces a single label."""
    rows = conditions.rows
    text = {**describe(rows), "seed": " ".join(map(str, seeds)), **about}
    icons = conditions.icons()
    if len(rows) == 1:
        labelled_grid(pictures, None, path, title=rows[0].label, text=text, icons=icons)
        return
    labels = [row.label for row in rows for _ in seeds]
    columns = len(seeds) if len(seeds) > 1 else min(len(rows), MAX_COLUMNS)
    labelled_grid(pictures, labels, path, columns, text=text, icons=icons)


@one_line_errors
def main() -> None:
    """Draw what the command line asks for, and save the pictures and their grid."""
    started = time.perf_counter()
    args = parse_args()
    rows = rows_to_draw(args)
    device = usable_device(args.device)
    ckpt = here_or_in_project(args.ckpt)
    config = read_config(config_file(args.config, checkpoint=ckpt), args.overrides)
    config = with_derived_sizes(config, "none", "none")
    config = with_sampling(config, args)
    denoiser, _ = load_denoiser(ckpt, device, config=config)
    compile_for_sampling(denoiser, config, device)
    require_encoders(config)
    clip = load_config_clip(config, device)
    check_width(denoiser, clip, config, args.ckpt)
    conditions = embed_rows(rows, clip, config)
    autoencoder = load_config_autoencoder(config, device)

    sampling = config.sampling
    seeds = args.seeds or range(sampling.seed, sampling.seed + args.num)
    jobs = [(r, seed) for r in range(len(rows)) for seed in seeds]
    out = args.out or default_out(rows[0].label)
    about = {
        "cfg_scale": str(sampling.cfg_scale),
        "num_steps": str(sampling.num_steps),
        "solver": sampling.solver,
        "amp": sampling.amp,
        "checkpoint": str(args.ckpt),
    }
    batches = generate(
        denoiser,
        autoencoder,
        conditions.embeddings.repeat_interleave(len(seeds), dim=0),
        [seed for _, seed in jobs],
        sampling,
        batch_size=args.batch_size,
        device=device,
    )
    pictures = save_pictures(batches, rows, jobs, out, about)
    save_grid(pictures, conditions, seeds, out / GRID, about)
    seconds = time.perf_counter() - started
    print(f"{len(jobs)} images in {seconds:.1f} s: {out / GRID}")


if __name__ == "__main__":
    main()
