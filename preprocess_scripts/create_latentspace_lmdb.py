"""Encode images with the VAE into databases of latents (LMDB).

The demo:          python preprocess_scripts/create_latentspace_lmdb.py
Your config:       python preprocess_scripts/create_latentspace_lmdb.py --config X.yaml
One folder:        python preprocess_scripts/create_latentspace_lmdb.py --images photos --out z
With embeddings:   python preprocess_scripts/create_latentspace_lmdb.py --with_clip
With features:     python preprocess_scripts/create_latentspace_lmdb.py --with_features
Four GPUs:         python preprocess_scripts/create_latentspace_lmdb.py --num_process_per_node 4
A part of eight:   python preprocess_scripts/create_latentspace_lmdb.py --num_shards 8 --shard 2

`--with_clip` also writes the CLIP embeddings that clip_encode_img.py makes, in one pass over the
images. `--with_features` writes what an image network makes of each patch of the training images:
DINOv2 if `encoders.dinov2` is set, else the image tower of the CLIP; `train.align_coef` needs it.
Beside the training latents, the script writes mean and deviation of each channel,
latent_statistics.json, which `encoders.latent_statistics` may name. If a run is cut off, start it
again: it goes on where it stopped.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

# First: from here on, Ctrl-C ends the script with one line.
from utils.base.errors import UserError
from utils.base.script import one_line_errors_of_each

# isort: split
import numpy as np
import torch

from utils.config.schema import Config
from utils.data.derived_sizes import Use, token_grid, with_derived_sizes
from utils.data.embeddings import write_image_mean
from utils.data.fill_databases import (
    Target,
    fill,
    image_embeddings,
    image_meta,
    patch_features,
    read_images,
)
from utils.data.latent_statistics import write_latent_statistics
from utils.data.preprocess_jobs import (
    KEYS,
    Job,
    config_value,
    find_jobs,
    load_clip_that_fits,
    make_parser,
    refuse_place_of_captions,
    shard_of,
)
from utils.data.source_files import SourceFiles
from utils.data.split_images import find_images
from utils.evaluation.patch_encoder import load_patch_encoder
from utils.pretrained.effective_config import load_effective_config
from utils.pretrained.encoders import ENCODERS, load_config_autoencoder, require_encoders

if TYPE_CHECKING:
    from models.autoencoder import Autoencoder


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = make_parser(__doc__, "z", batch_size=16)
    parser.add_argument(
        "--store",
        choices=["mean", "sample", "moments"],
        default="mean",
        help="what to keep of an image's latent distribution: its mean; one sample, which depends "
        "on the image's index alone; or mean and log-variance, from which training samples anew in "
        "every epoch",
    )
    parser.add_argument(
        "--with_clip",
        action="store_true",
        help="also fill the databases of image embeddings, from the same decoded images",
    )
    parser.add_argument(
        "--with_features",
        action="store_true",
        help="also fill the database of patch features of the training images, "
        "data.patch_feat_path",
    )
    parser.add_argument(
        "--xflip",
        action="store_true",
        help="also write the latents of the mirrored images, to z_xflip beside the database",
    )
    return parser.parse_intermixed_args()


def latents(vae: Autoencoder, images: torch.Tensor, store: str, first: int) -> torch.Tensor:
    """Encode (B, 3, H, W) uint8 images, the first of which has index `first`.

    Returns (B, C, h, w) scaled latents: means or samples. For `store` 'moments', returns
    (B, 2C, h, w): mean and log-variance of the scaled latents.
    """
    moments = vae.encode_moments(images.float() / 127.5 - 1)
    if store == "sample":
        rngs = [torch.Generator(moments.device).manual_seed(first + i) for i in range(len(images))]
        pairs = zip(moments.split(1), rngs, strict=True)
        return torch.cat([vae.sample_latents(m, rng) for m, rng in pairs])
    return vae.mean_latents(moments) if store == "mean" else vae.scaled_moments(moments)


def check_size(resolution: int, in_size: int, vae: Autoencoder) -> None:
    """Raise a UserError unless images of `data.resolution` give latents of `model.in_size`."""
    if resolution != in_size * vae.downsample:
        raise UserError(
            f"data.resolution is {resolution} pixels, but latents of model.in_size {in_size} and "
            f"this VAE (encoders.vae, {vae.downsample} times down) ask for "
            f"{in_size * vae.downsample}"
        )


@one_line_errors_of_each
def main() -> None:
    """Encode the images of each split into its databases."""
    args = parse_args()
    config = load_effective_config(args)
    embeddings: Use = "makes" if args.with_clip else "none"
    config = with_derived_sizes(config, "makes", embeddings, databases=args.out is None)
    shard = shard_of(args)
    jobs = find_jobs(args, config, "z")
    embedding_paths = [embeddings_of(job, config) if args.with_clip else None for job in jobs]
    feature_paths = [features_of(job, config) if args.with_features else None for job in jobs]
    todo = [(job, find_images(job, args)) for job in jobs]
    features_of_clip = args.with_features and config.encoders.dinov2 is None
    needs_clip = args.with_clip or features_of_clip
    require_encoders(config.encoders, ENCODERS if needs_clip else ["encoders.vae"])
    # Databases hold latents as the VAE scales them, whose statistics are measured at the end.
    plain = config.encoders.model_copy(update={"latent_statistics": None})
    vae = load_config_autoencoder(config.model_copy(update={"encoders": plain}), args.device)
    if args.store != "mean" and not vae.has_posterior:
        raise UserError(
            f"--store {args.store}: encoders.vae {config.encoders.vae} gives an image one latent, "
            "no distribution; leave out --store"
        )
    size = config.data.resolution
    check_size(size, config.model.in_size, vae)
    clip = load_clip_that_fits(config, args.device) if args.with_clip else None
    side = token_grid(config.model)
    encoder = load_patch_encoder(config, side, args.device, clip) if any(feature_paths) else None
    meta = {
        **image_meta(size, args),
        "encoder": vae.identity,
        "scale_factor": vae.scale_factor,
        "z_holds": args.store,
    }

    def encode(images: torch.Tensor, first: int) -> np.ndarray:
        return latents(vae, images, args.store, first).cpu().numpy()

    def encode_mirrored(images: torch.Tensor, first: int) -> np.ndarray:
        return encode(images.flip(3), first)

    places = zip(todo, embedding_paths, feature_paths, strict=True)
    for (job, samples), clip_img, features in places:
        targets = [Target(job.out, "z", meta, encode)]
        if args.xflip:
            mirrored = job.out.with_name(f"{job.out.name}_xflip")
            targets.append(Target(mirrored, "z", meta | {"xflip": True}, encode_mirrored))
        if clip is not None and clip_img is not None:
            one_pass = encoder.embeddings if encoder is not None and features is not None else None
            targets.append(image_embeddings(clip_img, clip, size, args, one_pass))
        if encoder is not None and features is not None:
            targets.append(patch_features(features, encoder, size, args))
        names = [sample.name for sample in samples]
        files = SourceFiles([sample.path for sample in samples], threads=args.num_workers)
        read = partial(read_images, files, size, args)
        is_complete = fill(job, names, targets, read, shard, files)
        if is_complete and job.split == "train":
            write_latent_statistics(job.out)
        if is_complete and clip_img is not None:
            write_image_mean(clip_img)


def embeddings_of(job: Job, config: Config) -> Path:
    """Return the database that `--with_clip` fills: the config's, or clip_img beside `--out`.

    Raises a UserError if the config names none.
    """
    if job.is_given:
        return job.out.with_name("clip_img")
    key = KEYS[job.split]["clip_img"]
    if (path := config_value(config, key)) is None:
        raise UserError(f"--with_clip: {key} is not set; set it in the config or the command")
    refuse_place_of_captions(path, config, "--with_clip")
    return path


def features_of(job: Job, config: Config) -> Path | None:
    """Return the database that `--with_features` fills: the config's, or `features` beside `--out`.

    Returns None for the test split, whose features nobody reads. Raises a UserError if the config
    names no database.
    """
    if job.is_given:
        return job.out.with_name("features")
    if job.split == "test":
        return None
    if (path := config.data.patch_feat_path) is None:
        raise UserError(
            "--with_features: data.patch_feat_path is not set; set it in the config or the command"
        )
    return path


if __name__ == "__main__":
    main()
