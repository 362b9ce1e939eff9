"""Export a network for machines without PyTorch: ONNX files, a tokenizer and a small sampler.

The shipped network:   python tools/export_onnx.py
Your own:              python tools/export_onnx.py --ckpt results/own/checkpoints/0100000.pt
Other settings:        python tools/export_onnx.py sampling.preset=paper sampling.cfg_scale=2
Then, anywhere:        python results/onnx/generate.py "a man in a turban" --seeds 0 1 2 3

Writes denoiser.onnx, decoder.onnx, text.onnx, settings.json, tokenizer.json, and the files of
tools/onnx_files, which need numpy and onnxruntime alone. A seed gives the face of t2f.py in float32
with --freedom 0. The script then generates some images by PyTorch and by onnxruntime, prints the
largest differences, and writes both into comparison.png. Packages: requirements-onnx.txt.
"""

from __future__ import annotations

import argparse
import importlib.util
import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tools" / "onnx_files")]

# First: from here on, Ctrl-C ends the script with one line.
from utils.base.errors import UserError
from utils.base.script import one_line_errors

# isort: split
import numpy as np
import torch

from models.edm import EDMPrecond
from utils.base.files import write_folder_whole, write_json
from utils.base.text import aligned
from utils.config.command_line import ArgumentParser, add_config_arguments
from utils.config.schema import Config
from utils.data.derived_sizes import with_derived_sizes
from utils.data.embeddings import read_image_mean
from utils.pretrained.denoisers import load_denoiser
from utils.pretrained.effective_config import config_file, read_config
from utils.pretrained.encoder_paths import here_or_in_project
from utils.pretrained.encoders import (
    load_config_autoencoder,
    load_config_clip,
    require_encoders,
)
from utils.sampling.conditions import embed_rows
from utils.sampling.generate import generate, latent_shape, sampler_settings
from utils.sampling.image_files import labelled_grid
from utils.sampling.prompts import Row, text_prompt

if TYPE_CHECKING:
    from models.autoencoder import Autoencoder
    from models.clip import ClipEncoder

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
FILES = ROOT / "tools" / "onnx_files"
PROMPTS = ("a man in a turban", "a woman with long red hair", "a person in a blue hoodie")


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument(
        "--ckpt", type=Path, default=Path("assets/demo/dit.safetensors"), help=".pt or .safetensors"
    )
    add_config_arguments(parser, instead="the one in the checkpoint")
    parser.add_argument(
        "--out", type=Path, default=Path("results/onnx"), help="new folder to write"
    )
    parser.add_argument(
        "--compare", type=int, default=4, help="images to compare with PyTorch's; 0 = none"
    )
    return parser.parse_intermixed_args()


def refuse_what_the_sampler_lacks(config: Config, denoiser: EDMPrecond) -> None:
    """Raise UserError for networks and settings that tools/onnx_files/sampler.py does not know."""
    sampling, model = config.sampling, denoiser.model
    latent = latent_shape(denoiser)
    faults = {
        "sampling.S_churn": sampling.S_churn > 0,
        "sampling.schedule": sampling.schedule not in (None, "linear"),
        "sampling.scaling": sampling.scaling not in (None, "none"),
        "model.ext_feature_dim": model.architecture.ext_feature_dim > 0,
        f"latents of {latent}": latent[0] * latent[1] * latent[2] % 16 > 0,
        "a network without text condition": model.cond_dim == 0 or config.samples_classes,
    }
    if found := [name for name, is_there in faults.items() if is_there]:
        raise UserError(f"the ONNX sampler does not know {' and '.join(found)}")


def settings_of(config: Config, denoiser: EDMPrecond) -> dict[str, Any]:
    """Return the content of settings.json: everything that the sampler reads, as plain values."""
    sampling, encoders = config.sampling, config.encoders
    low, high = sampling.guidance_interval or (0.0, 1e9)
    mean = None
    if encoders.image_mean:
        mean = read_image_mean(encoders.image_mean, denoiser.model.cond_dim).tolist()
    return {
        "latent": latent_shape(denoiser),
        "solver": sampling.solver,
        "sigmas": sampler_settings(sampling).formulation().t_steps,
        "cfg_scale": sampling.cfg_scale,
        "guidance_interval": (low, high),
        "norm_feature": config.data.norm_feature,
        "image_mean": mean,
    }


def compare(
    folder: Path,
    denoiser: EDMPrecond,
    autoencoder: Autoencoder,
    clip: ClipEncoder,
    config: Config,
    count: int,
) -> str:
    """Write `count` images of both libraries into comparison.png; return how much they differ."""
    from sampler import Sampler  # imported here: it imports onnxruntime

    prompts, seeds = [PROMPTS[i % len(PROMPTS)] for i in range(count)], range(count)
    started = time.perf_counter()
    rows = [Row(((text_prompt(prompt), 1.0),)) for prompt in prompts]
    conds = embed_rows(rows, clip, config).embeddings
    batches = generate(denoiser, autoencoder, conds, seeds, config.sampling)
    ours = torch.cat([images for _, images in batches]).numpy()  # (N, H, W, 3) uint8
    between = time.perf_counter()
    theirs = Sampler(folder).generate(prompts, list(seeds))
    seconds = between - started, time.perf_counter() - between
    difference = np.abs(ours.astype(int) - theirs)
    labels = [f"{name}: {prompt}" for name in ("PyTorch", "onnxruntime") for prompt in prompts]
    grid = labelled_grid(np.concatenate([ours, theirs]), labels, columns=count)
    grid.save(folder / "comparison.png")
    return (
        f"{count} images compared: {100 * (difference > 0).mean():.3f} % of the 8-bit values "
        f"differ, by {difference.max()} at most; {seconds[0]:.1f} s with PyTorch, "
        f"{seconds[1]:.1f} s with onnxruntime"
    )


@one_line_errors
def main() -> None:
    """Export, and compare the images."""
    args = parse_args()
    if missing := [name for name in PACKAGES if importlib.util.find_spec(name) is None]:
        raise UserError(f"{' and '.join(missing)} missing: pip install -r requirements-onnx.txt")
    if args.out.exists():
        raise UserError(f"{args.out} is there already: delete it, or choose another --out")
    ckpt = here_or_in_project(args.ckpt)
    # The sampler has no prior: it takes sentences literally.
    overrides = ["encoders.precision=float32", "sampling.amp=no", "sampling.freedom=0"]
    overrides = [*args.overrides, *overrides]
    config = read_config(config_file(args.config, checkpoint=ckpt), overrides)
    config = with_derived_sizes(config, "none", "none")
    denoiser, _ = load_denoiser(ckpt, config=config)
    refuse_what_the_sampler_lacks(config, denoiser)
    require_encoders(config.encoders)
    networks = denoiser, load_config_autoencoder(config), load_config_clip(config.encoders)
    from tools.onnx_networks import export_networks, export_tokenizer  # imported here: slow

    def write(folder: Path) -> None:
        export_tokenizer(networks[2], folder / "tokenizer.json")
        export_networks(*networks, folder)
        write_json(folder / "settings.json", settings_of(config, denoiser))
        for file in FILES.glob("*.py"):
            shutil.copy(file, folder)

    write_folder_whole(args.out, write)
    files = sorted(args.out.iterdir(), key=lambda file: -file.stat().st_size)
    sizes = [(file.name, f"{file.stat().st_size / 1e6:.2f}") for file in files]
    print(aligned([("file", "MB"), *sizes], left=1))
    if args.compare > 0:
        print(compare(args.out, *networks, config, args.compare))
    print(f'{args.out}: generate with  python {args.out / "generate.py"} "{PROMPTS[0]}"')


if __name__ == "__main__":
    main()
