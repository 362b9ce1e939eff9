"""Draw faces from sentences.

One sentence:    python t2f.py --prompt "a person with long red hair and round glasses"
Several:         python t2f.py --prompt "a bald man" --prompt "a woman with a green hat" --num 8
A file, a line each:  python t2f.py --prompts_file prompts.txt --out samples/mine
Your own model:  python t2f.py --prompt "…" --ckpt results/demo/checkpoints/0001600.pt
Certain seeds:   python t2f.py --prompt "…" --seeds 0-7,42

Writes one PNG per image, <prompt>_<seed>.png, and all of them as grid.png with the sentences.
The same seed, sentence and settings give the same face, whatever else is drawn with it.
"""

from __future__ import annotations

import argparse
import re
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from models.clip import ClipEncoder
from utils.checkpoint import load_denoiser
from utils.config import Config, HelpFormatter, load_config
from utils.encoders import load_config_autoencoder, load_config_clip
from utils.errors import UserError, note, one_line_errors
from utils.generate import generate, parse_scale, parse_seeds, sampler_settings
from utils.images import labelled_grid, save_png
from utils.tracking import progress

FROM_CONFIG = "as the checkpoint's config says"


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=HelpFormatter,
    )
    parser.add_argument(
        "--prompt", action="append", default=[], help="what to draw; may be given more than once"
    )
    parser.add_argument("--prompts_file", type=Path, help="text file with a prompt a line")
    parser.add_argument("--num", type=int, default=16, help="images per prompt")
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
    parser.add_argument("--num_steps", default=FROM_CONFIG, help="noise levels of the sampler")
    parser.add_argument("--solver", default=FROM_CONFIG, help="heun, euler or dpmpp_2m")
    parser.add_argument(
        "--ckpt", type=Path, default=Path("assets/demo/dit.safetensors"), help=".pt or .safetensors"
    )
    parser.add_argument(
        "--config", type=Path, help="YAML file; needed only where the checkpoint holds no config"
    )
    parser.add_argument(
        "--out", type=Path, help="folder to write into; None = samples/ and the first prompt"
    )
    parser.add_argument("--batch_size", type=int, default=16, help="images drawn at once")
    parser.add_argument(
        "--device",
        default="cuda" if torch.cuda.is_available() else "cpu",
        help="where to compute, e.g. cpu or cuda:1",
    )
    return parser.parse_args()


def collect_prompts(args: argparse.Namespace) -> list[str]:
    """All prompts asked for, stripped; raises UserError if one is empty or there is none."""
    prompts = [prompt.strip() for prompt in args.prompt]
    if not all(prompts):
        raise UserError("--prompt is empty; say what to draw")
    if args.prompts_file:
        try:
            text = args.prompts_file.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as fault:
            raise UserError(
                f"{args.prompts_file}: cannot be read as a text file ({fault})"
            ) from fault
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        if not lines:
            raise UserError(f"{args.prompts_file}: holds no prompt; write one a line")
        prompts += lines
    if not prompts:
        raise UserError('say what to draw: --prompt "a person with red hair" or --prompts_file F')
    return prompts


def whole_number(args: argparse.Namespace, name: str) -> int:
    """The value of a flag; raises UserError if it is not a whole number."""
    text = getattr(args, name)
    if not re.fullmatch(r"\d+", text):
        raise UserError(f"--{name} {text}: should be a whole number")
    return int(text)


def with_sampling(config: Config, args: argparse.Namespace) -> Config:
    """The checkpoint's config with the sampler settings of the command line."""
    changes: dict[str, object] = {}
    for name in ("seed", "num_steps"):
        if getattr(args, name) != FROM_CONFIG:
            changes[name] = whole_number(args, name)
    if args.cfg_scale != FROM_CONFIG:
        changes["cfg_scale"] = parse_scale(args.cfg_scale)
    if args.solver != FROM_CONFIG:
        changes["solver"] = args.solver
    return config.model_copy(update={"sampling": config.sampling.model_copy(update=changes)})


def embed(prompts: list[str], clip: ClipEncoder, config: Config) -> torch.Tensor:
    """Conditions (P, D) of the prompts; says which of them are too long to be read whole."""
    for prompt in prompts:
        if clip.count_truncated([prompt]):
            note(
                f"only the first {clip.context_length} tokens are read, the rest is cut: "
                f"{prompt[:60]}…"
            )
    conds = clip.encode_texts(prompts)
    return F.normalize(conds) if config.data.norm_feature else conds


def default_out(prompt: str) -> Path:
    """A folder name that tells the prompt."""
    slug = re.sub(r"\W+", "-", prompt.lower()).strip("-")[:60].rstrip("-")
    return Path("samples") / (slug or "prompt")


@one_line_errors
def main() -> None:
    started = time.perf_counter()
    args = parse_args()
    prompts = collect_prompts(args)
    if args.num < 1 or args.batch_size < 1:
        raise UserError("--num and --batch_size must be at least 1")
    try:
        device = torch.empty(0, device=args.device).device
    except (RuntimeError, AssertionError) as fault:
        raise UserError(f"--device {args.device}: {str(fault).splitlines()[0]}") from fault
    given = load_config(args.config) if args.config else None
    denoiser, config = load_denoiser(args.ckpt, device, config=given)
    config = with_sampling(config, args)
    sampling, settings = config.sampling, sampler_settings(config.sampling)
    seeds = args.seeds or range(sampling.seed, sampling.seed + args.num)
    clip = load_config_clip(config, device)
    if clip.dim != denoiser.model.cond_width:
        raise UserError(
            f"{args.ckpt}: takes conditions of {denoiser.model.cond_width} numbers, but "
            f"{config.encoders.clip} gives {clip.dim}; it was trained with another CLIP"
        )
    conds = embed(prompts, clip, config)
    autoencoder = load_config_autoencoder(config, device)

    out = args.out or default_out(prompts[0])
    about = {
        "cfg_scale": str(sampling.cfg_scale),
        "num_steps": str(settings.num_steps),
        "solver": settings.solver,
        "checkpoint": str(args.ckpt),
    }
    jobs = [(p, seed) for p in range(len(prompts)) for seed in seeds]
    pictures = []
    with progress(desc="draw", total=len(jobs), unit="images") as bar:
        for positions, images in generate(
            denoiser,
            autoencoder,
            conds.repeat_interleave(len(seeds), dim=0),
            [seed for _, seed in jobs],
            settings,
            cfg_scale=sampling.cfg_scale,
            interval=sampling.guidance_interval,
            batch_size=args.batch_size,
            device=device,
        ):
            for position, image in zip(positions, images.numpy(), strict=True):
                p, seed = jobs[position]
                text = {"prompt": prompts[p], "seed": str(seed), **about}
                save_png(image, out / f"{p:02d}_{seed:03d}.png", text)
                pictures.append(image)
            bar.update(len(positions))

    labelled_grid(
        np.stack(pictures),
        None if len(prompts) == 1 else [prompts[p] for p, _ in jobs],
        out / "grid.png",
        columns=None if len(prompts) == 1 else len(seeds),
        title=prompts[0] if len(prompts) == 1 else None,
        text={"prompt": "\n".join(prompts), "seed": " ".join(map(str, seeds)), **about},
    )
    seconds = time.perf_counter() - started
    print(f"{len(jobs)} images in {seconds:.1f} s: {out / 'grid.png'}")


if __name__ == "__main__":
    main()
