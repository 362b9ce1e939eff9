"""Draw faces from sentences, from images, and from mixtures of them.

One sentence:    python t2f.py --prompt "a person with long red hair and round glasses"
Several:         python t2f.py --prompt "a bald man" --prompt "a woman with a green hat" --num 8
A file, a line each:  python t2f.py --prompts_file prompts.txt --out samples/mine
Your own model:  python t2f.py --prompt "…" --ckpt results/demo/checkpoints/0000900.pt
Certain seeds:   python t2f.py --prompt "…" --seeds 0-7,42
Like an image:   python t2f.py --image face.png
A mixture:       python t2f.py --image face.png --prompt "a person with a hat" --mix 0.6,0.4
In five steps from one to the other:  python t2f.py --prompt "…" --prompt "…" --interpolate 5

Writes one PNG per image, <row>_<seed>.png, and all of them as grid.png with their sentences: a row
for each prompt and image in their order; or, with --mix or --interpolate, for each mixture of them.
The same seed, condition and settings give the same face, whatever else is drawn with it.
"""

from __future__ import annotations

import argparse
import re
import time
from pathlib import Path

import numpy as np
import torch

from utils.base.errors import UserError, one_line_errors
from utils.base.progress import progress
from utils.config.command_line import HelpFormatter
from utils.config.load import load_config
from utils.config.parsing import parse_scale, parse_seeds
from utils.config.schema import Config
from utils.config.sections import SAMPLING_PRESETS
from utils.pretrained.denoisers import load_denoiser
from utils.pretrained.encoders import load_config_autoencoder, load_config_clip, usable_device
from utils.sampling.compile import compile_for_sampling
from utils.sampling.conditions import embed_rows
from utils.sampling.generate import generate, sampler_settings
from utils.sampling.pictures import labelled_grid, save_png
from utils.sampling.prompts import arrange, describe, image_prompt, read_prompts, text_prompt

FROM_CONFIG = "as the checkpoint's config says"
MOST_COLUMNS = 8  # of a grid whose rows have one picture each


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=HelpFormatter,
    )
    parser.add_argument(
        "--prompt", action="append", dest="sources", help="what to draw; may be given repeatedly",
        type=text_prompt, metavar="TEXT",
    )  # fmt: skip
    parser.add_argument("--prompts_file", type=Path, help="text file with a prompt a line")
    parser.add_argument(
        "--image", action="append", dest="sources", help="draw faces like this; may be repeated",
        type=image_prompt, metavar="FILE",
    )  # fmt: skip
    parser.add_argument(
        "--mix", action="append", default=None, metavar="W,W",
        help="weights of all prompts and images, for a row drawn from their mixture; may be given "
        "repeatedly; with a negative first weight write --mix=-0.5,1.5",
    )  # fmt: skip
    parser.add_argument(
        "--interpolate", type=int, metavar="ROWS", help="rows from one prompt or image to another"
    )
    parser.add_argument("--num", type=int, default=16, help="images per row")
    parser.add_argument(
        "--seed", default=FROM_CONFIG, help="seed of the first image; the others' follow it"
    )
    parser.add_argument(
        "--seeds",
        type=parse_seeds,
        help="seeds themselves, e.g. 0-63,100, instead of --num, --seed",
    )
    parser.add_argument(
        "--cfg_scale", default=FROM_CONFIG, help="guidance, or None for the condition alone"
    )
    parser.add_argument(
        "--preset",
        choices=SAMPLING_PRESETS,
        help="fast, or paper (40 Heun steps in float32); the next two come before it; "
        f"None = {FROM_CONFIG}",
    )
    parser.add_argument("--num_steps", default=FROM_CONFIG, help="noise levels of the sampler")
    parser.add_argument("--solver", default=FROM_CONFIG, help="heun, euler or dpmpp_2m")
    parser.add_argument(
        "--ckpt", type=Path, default=Path("assets/demo/dit.safetensors"), help=".pt or .safetensors"
    )
    parser.add_argument(
        "--config", type=Path, help="YAML file; needed only where the checkpoint holds no config"
    )
    parser.add_argument(
        "--out", type=Path, help="folder to write into; None = samples/ and the first label"
    )
    parser.add_argument("--batch_size", type=int, default=16, help="images drawn at once")
    parser.add_argument(
        "--device",
        default="cuda" if torch.cuda.is_available() else "cpu",
        help="where to compute, e.g. cpu or cuda:1",
    )
    return parser.parse_args()


def whole_number(args: argparse.Namespace, name: str) -> int:
    """The value of a flag; raises UserError if it is not a whole number."""
    text = getattr(args, name)
    if not re.fullmatch(r"\d+", text):
        raise UserError(f"--{name} {text}: should be a whole number")
    return int(text)


def with_sampling(config: Config, args: argparse.Namespace) -> Config:
    """The checkpoint's config with the sampler settings of the command line."""
    changes: dict[str, object] = {}
    if args.preset:
        changes = {"preset": args.preset, **SAMPLING_PRESETS[args.preset]}
    for name in ("seed", "num_steps"):
        if getattr(args, name) != FROM_CONFIG:
            changes[name] = whole_number(args, name)
    if args.cfg_scale != FROM_CONFIG:
        changes["cfg_scale"] = parse_scale(args.cfg_scale)
    if args.solver != FROM_CONFIG:
        changes["solver"] = args.solver
    return config.model_copy(update={"sampling": config.sampling.model_copy(update=changes)})


def default_out(label: str) -> Path:
    """A folder name that tells what is drawn."""
    slug = re.sub(r"\W+", "-", label.lower()).strip("-")[:60].rstrip("-")
    return Path("samples") / (slug or "prompt")


@one_line_errors
def main() -> None:
    started = time.perf_counter()
    args = parse_args()
    sources = args.sources or []
    if args.prompts_file:
        sources += map(text_prompt, read_prompts(args.prompts_file))
    rows = arrange(sources, args.mix or [], args.interpolate)
    if args.num < 1 or args.batch_size < 1:
        raise UserError("--num and --batch_size must be at least 1")
    device = usable_device(args.device)
    given = load_config(args.config) if args.config else None
    denoiser, config = load_denoiser(args.ckpt, device, config=given)
    config = with_sampling(config, args)
    compile_for_sampling(denoiser, config, device)
    sampling, settings = config.sampling, sampler_settings(config.sampling)
    seeds = args.seeds or range(sampling.seed, sampling.seed + args.num)
    clip = load_config_clip(config, device)
    if clip.dim != denoiser.model.cond_width:
        raise UserError(
            f"{args.ckpt}: takes conditions of {denoiser.model.cond_width} numbers, but "
            f"{config.encoders.clip} gives {clip.dim}; it was trained with another CLIP"
        )
    conditions = embed_rows(rows, clip, config)
    autoencoder = load_config_autoencoder(config, device)

    out = args.out or default_out(rows[0].label)
    about = {
        "cfg_scale": str(sampling.cfg_scale),
        "num_steps": str(settings.num_steps),
        "solver": settings.solver,
        "amp": sampling.amp,
        "checkpoint": str(args.ckpt),
    }
    jobs = [(r, seed) for r in range(len(rows)) for seed in seeds]
    pictures = []
    with progress(desc="draw", total=len(jobs), unit="images") as bar:
        for positions, images in generate(
            denoiser,
            autoencoder,
            conditions.embeddings.repeat_interleave(len(seeds), dim=0),
            [seed for _, seed in jobs],
            settings,
            cfg_scale=sampling.cfg_scale,
            interval=sampling.guidance_interval,
            batch_size=args.batch_size,
            device=device,
            amp=sampling.amp,
        ):
            for position, image in zip(positions, images.numpy(), strict=True):
                r, seed = jobs[position]
                text = {**describe([rows[r]]), "seed": str(seed), **about}
                save_png(image, out / f"{r:02d}_{seed:03d}.png", text)
                pictures.append(image)
            bar.update(len(positions))

    alone = len(rows) == 1
    labelled_grid(
        np.stack(pictures),
        None if alone else [rows[r].label for r, _ in jobs],
        out / "grid.png",
        columns=None if alone else len(seeds) if len(seeds) > 1 else min(len(rows), MOST_COLUMNS),
        title=rows[0].label if alone else None,
        text={**describe(rows), "seed": " ".join(map(str, seeds)), **about},
        icons=conditions.icons(),
    )
    seconds = time.perf_counter() - started
    print(f"{len(jobs)} images in {seconds:.1f} s: {out / 'grid.png'}")


if __name__ == "__main__":
    main()
