"""Encode images with the VAE into databases of latents (LMDB).

The demo:          python preprocess_scripts/create_latentspace_lmdb.py
Your config:       python preprocess_scripts/create_latentspace_lmdb.py --config X.yaml
One folder:        python preprocess_scripts/create_latentspace_lmdb.py --images photos --out z

A run that was cut off goes on where it stopped when it is started again.
"""

import argparse
import math
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from models.autoencoder import Autoencoder
from utils.config import Config, load_config
from utils.encoders import load_config_autoencoder
from utils.errors import UserError, one_line_errors
from utils.images import iterate_batches
from utils.preprocessing import fill, find_images, find_jobs, make_parser


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__, "z", batch_size=16)
    parser.add_argument(
        "--store",
        choices=["mean", "sample", "moments"],
        default="mean",
        help="of an image's latent distribution: its mean; one sample, always the same for an "
        "image's index; or mean and log-variance, from which training draws anew each time",
    )
    return parser.parse_intermixed_args()


def latents(vae: Autoencoder, images: torch.Tensor, store: str, first: int) -> torch.Tensor:
    """What is stored of (B, 3, H, W) uint8 images, the first of which has index `first`.

    Returns (B, C, h, w) scaled latents, or for moments (B, 2C, h, w): mean and log-variance of the
    scaled latents.
    """
    moments = vae.encode_moments(images.float() / 127.5 - 1)
    if store == "sample":
        draws = [torch.Generator(moments.device).manual_seed(first + i) for i in range(len(images))]
        pairs = zip(moments.split(1), draws, strict=True)
        return torch.cat([vae.sample_latents(m, draw) for m, draw in pairs])
    mean = vae.mean_latents(moments)
    if store == "mean":
        return mean
    log_variance = moments.chunk(2, dim=1)[1].clamp(-30, 20)
    return torch.cat([mean, log_variance + 2 * math.log(vae.scale_factor)], dim=1)


def check_size(config: Config, vae: Autoencoder) -> None:
    """Images of `data.resolution` must give latents of `model.in_size`."""
    if config.data.resolution != config.model.in_size * vae.downsample:
        raise UserError(
            f"data.resolution is {config.data.resolution} pixels, but latents of model.in_size "
            f"{config.model.in_size} and this VAE (encoders.vae, {vae.downsample} times down) ask "
            f"for {config.model.in_size * vae.downsample}"
        )


@one_line_errors
def main() -> None:
    args = parse_args()
    config = load_config(args.config, args.overrides)
    todo = [(job, *find_images(job, args)) for job in find_jobs(args, config, "z")]
    vae = load_config_autoencoder(config, args.device)
    check_size(config, vae)
    meta = {
        "resolution": config.data.resolution,
        "encoder": vae.identity,
        "scale_factor": vae.scale_factor,
        "z_holds": args.store,
    }
    for job, paths, names in todo:

        def encode_from(first: int, paths: list[Path] = paths) -> Iterator[np.ndarray]:
            for images in iterate_batches(
                paths[first:], config.data.resolution, args.batch_size, args.num_workers
            ):
                yield latents(vae, images, args.store, first).cpu().numpy()
                first += len(images)

        fill(job, "z", meta, names, encode_from)


if __name__ == "__main__":
    main()
