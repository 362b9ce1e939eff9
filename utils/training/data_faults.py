"""Faults of the data that a training would learn nothing from, found before its first step.

Each fault has a name, a figure and a remedy. They are warnings: the training goes on.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from models.agreement import direction_agreement, pair_agreement
from models.batch_random import BatchRandom
from utils.base.errors import UserError
from utils.config.schema import Config
from utils.data.images import to_uint8_array
from utils.data.latent_dataset import LatentDataset
from utils.data.lmdb_reader import LMDBReader
from utils.evaluation.neighbours import training_image_paths

if TYPE_CHECKING:
    from models.autoencoder import Autoencoder

SAMPLES, FEWEST = 512, 64  # that are read, and that a test needs
CHANCE = 5.0  # deviations above chance; data in order have 13 with 64 images, 90 with 512
# Root mean square of the latents over sigma_data; the published settings have about 2.
SCALES = (0.45, 3.3)
SPREAD, DISTINCT = 0.1, 0.05  # of captions' embeddings: least deviation, fraction of different ones
DECODED, LISTED = 8, 100_000  # images that are decoded, and files among which they are looked for


def data_faults(config: Config, data: LatentDataset, decoder: Autoencoder | None) -> list[str]:
    """Return a line for each fault of the training's data; [] if they are in order.

    decoder: takes latents as the network sees them; None = latents are not decoded.
    """
    rows = torch.linspace(0, data.length - 1, min(SAMPLES, data.length)).long()
    z, y = data.batch(rows, BatchRandom(torch.Generator().manual_seed(0)))
    captions = _embeddings(config.eval.feat_path)
    of_images = _embeddings(config.eval.image_feat_path)
    lost = _lost_faces(config, decoder, rows, z)
    found = [_wrong_scale(config, z), lost, _empty_captions(config, captions, of_images)]
    if y is not None and data.n_features and not config.model.ext_feature_dim:
        if lost is None:
            found.append(_shuffled(config, z, y))
        others = captions if of_images is None and found[2] is None else of_images
        found.append(_other_clip(config, F.normalize(y, dim=1), others))
    return [fault for fault in found if fault is not None]


def _wrong_scale(config: Config, z: Tensor) -> str | None:
    size, sigma_data = float(z.square().mean().sqrt()), config.model.sigma_data
    if SCALES[0] <= size / sigma_data <= SCALES[1]:
        return None
    return (
        f"wrong scale: the latents of {config.data.root} have a root mean square of {size:.3g}, "
        f"{size / sigma_data:.3g} times model.sigma_data ({sigma_data:g}); make them again with "
        "the VAE's scale factor, or name encoders.latent_statistics, or set model.sigma_data to it"
    )


def _lost_faces(config: Config, decoder: Autoencoder | None, rows: Tensor, z: Tensor) -> str | None:
    """Compare decoded latents with their images, and with those at the latents' own resolution."""
    if len(z) >= FEWEST and float((z - z.mean(dim=0)).square().mean() / z.square().mean()) < 0.01:
        return (
            f"lost faces: the latents of {config.data.root} are the same for all images; make them "
            "again with another encoders.vae"
        )
    some = np.unique(np.linspace(0, len(rows) - 1, DECODED).astype(np.int64))
    images = _images(config, rows[some].tolist()) if decoder is not None else None
    if decoder is None or images is None:
        return None
    with torch.inference_mode():
        decoded = torch.cat([decoder.decode(part) for part in z[some].split(1)]).cpu()
    if decoded.shape != images.shape:
        return None
    small = F.adaptive_avg_pool2d(images, z.shape[-1])
    blurred = F.interpolate(small, images.shape[-2:])
    errors = [float((x.nan_to_num() - images).square().mean()) for x in (decoded, blurred)]
    if errors[0] <= errors[1]:
        return None
    decibels = [10 * np.log10(4 / error) for error in errors]
    return (
        f"lost faces: decoded latents of {config.data.root} differ from their images more "
        f"(PSNR {decibels[0]:.1f} dB) than these images at {z.shape[-1]}x{z.shape[-1]} pixels "
        f"({decibels[1]:.1f} dB); name the VAE that made them, or make them again with a better "
        "encoders.vae"
    )


def _images(config: Config, indices: list[int]) -> Tensor | None:
    """Return training images (N, 3, S, S) in [-1, 1], or None if their files are not there."""
    assert config.data.root is not None
    reader = LMDBReader(config.data.root)
    if reader.info.length > LISTED:
        return None
    try:
        paths = training_image_paths(config.data.image_dir, reader, indices)
    except UserError:
        return None
    if paths is None:
        return None
    pixels = np.stack([to_uint8_array(path, config.data.resolution) for path in paths])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1


def _shuffled(config: Config, z: Tensor, y: Tensor) -> str | None:
    agreement = pair_agreement(z, y)
    if len(z) < FEWEST or not agreement < CHANCE:  # nan: nothing varies
        return None
    return (
        f"shuffled embeddings: those of {config.data.feat_path} say nothing of the latents beside "
        f"them ({agreement:.1f} deviations above chance; in order: above {CHANCE:g}); make "
        "both again from the same images, in the same order"
    )


def _other_clip(config: Config, y: Tensor, others: Tensor | None) -> str | None:
    if others is None or y.shape[1] != others.shape[1] or min(len(y), len(others)) < FEWEST:
        return None
    agreement = direction_agreement(y, others)
    if not agreement < CHANCE:
        return None
    return (
        f"another CLIP: embeddings of {config.data.feat_path} and of the test split have no "
        f"directions in common ({agreement:.1f} deviations above chance; of one CLIP: above "
        f"{CHANCE:g}); make both again with encoders.clip"
    )


def _empty_captions(
    config: Config, captions: Tensor | None, of_images: Tensor | None
) -> str | None:
    """Check that embeddings of captions differ, and follow their images."""
    if captions is None or len(captions) < FEWEST:
        return None
    spread = float((captions - captions.mean(dim=0)).square().sum(dim=1).mean().sqrt())
    distinct = len(captions.mul(1e4).round().unique(dim=0)) / len(captions)
    which = f"empty captions: those of {config.eval.feat_path}"
    remedy = "write captions that name what differs, or evaluate without them"
    if spread < SPREAD or distinct < DISTINCT:
        return (
            f"{which} hardly differ: {distinct:.0%} are different, with a deviation of "
            f"{spread:.2f} (usually 0.4 or more); {remedy}"
        )
    if of_images is None or len(of_images) != len(captions):
        return None
    agreement = pair_agreement(captions, of_images)
    if not agreement < CHANCE:
        return None
    return (
        f"{which} say nothing of their images ({agreement:.1f} deviations above chance; "
        f"usually above {CHANCE:g}); {remedy}"
    )


def _embeddings(path: Path | None) -> Tensor | None:
    """Read the first embedding of some samples, (N, D) of unit length; None if there are none."""
    if path is None:
        return None
    try:
        reader = LMDBReader(path)
        rows = np.unique(np.linspace(0, reader.info.length - 1, SAMPLES).astype(np.int64))
        return F.normalize(torch.from_numpy(reader.read(rows)), dim=1)
    except UserError:
        return None
