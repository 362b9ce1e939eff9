"""Embeddings of a feature database: a random part, alone or in pairs, and the mean of all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from utils.checkpoint import write_whole
from utils.errors import UserError, refusing
from utils.latent_lmdb import LMDBReader, check_same_samples, expect_kind

IMAGE_MEAN = "image_mean.npy"
BATCH = 4096  # embeddings read at a time


def open_embeddings(path: Path | None, option: str, key: str) -> LMDBReader:
    """The feature database at `path`; UserError if none is named, by `option` or by the config's
    `key`, or it is not one."""
    if path is None:
        raise UserError(f"no database of embeddings is named: give {option}, or set {key}")
    reader = LMDBReader(path)
    expect_kind(reader, "y")
    return reader


def random_directions(count: int, dim: int, generator: torch.Generator) -> torch.Tensor:
    """Unit vectors (count, dim), all directions alike."""
    return F.normalize(torch.randn(count, dim, generator=generator), dim=1)


def write_image_mean(database: Path) -> None:
    """Write the mean of a database's normalised embeddings into its folder, `image_mean.npy`."""
    reader = LMDBReader(database)
    total = torch.zeros(reader.info.shape, dtype=torch.float64)
    for rows in torch.arange(reader.info.length).split(BATCH):
        y = torch.from_numpy(reader.read(rows.numpy()))
        total += F.normalize(y.double(), dim=1).sum(dim=0)
    mean = (total / reader.info.length).float().numpy()

    def write(path: Path) -> None:
        with open(path, "wb") as file:
            np.save(file, mean)

    write_whole(database / IMAGE_MEAN, write)


def read_image_mean(path: Path, dim: int) -> torch.Tensor:
    """(dim,) float32 from a file of write_image_mean; raises UserError if it holds no such."""
    if not path.is_file():
        raise UserError(
            f"encoders.image_mean: {path} is not there; preprocess_scripts/clip_encode_img.py "
            f"writes {IMAGE_MEAN} beside the embeddings"
        )
    with refusing(f"encoders.image_mean: {path} cannot be read"):
        mean = np.load(path, allow_pickle=False)
    if not isinstance(mean, np.ndarray) or mean.shape != (dim,):
        raise UserError(f"encoders.image_mean: {path} does not hold {dim} numbers, as CLIP gives")
    if mean.dtype.kind not in "fiu":
        raise UserError(f"encoders.image_mean: {path} holds {mean.dtype}, not numbers")
    return torch.from_numpy(mean.astype(np.float32))


def some_samples(reader: LMDBReader, count: int, generator: torch.Generator) -> torch.Tensor:
    """Which samples: (min(count, length),) int64, each once, in random order."""
    return torch.randperm(reader.info.length, generator=generator)[:count]


def read_some(
    reader: LMDBReader, samples: torch.Tensor, generator: torch.Generator
) -> torch.Tensor:
    """Embeddings (N, D) float32 of the samples; where one has several, one of them is drawn."""
    rows = samples.numpy()
    drawn = torch.rand(len(samples), generator=generator).numpy()
    which = (drawn * reader.info.counts[rows]).astype(int)
    return torch.from_numpy(reader.read(rows, which))


def read_pairs(
    images: LMDBReader, texts: LMDBReader, count: int, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """At most `count` samples' image embeddings and caption embeddings, (N, D) each.

    Raises UserError if the databases are not of the same samples and the same CLIP.
    """
    check_same_samples(images, texts)
    encoders = [reader.info.meta.get("encoder") for reader in (images, texts)]
    if None not in encoders and encoders[0] != encoders[1]:
        raise UserError(
            f"{images.path} is from {encoders[0]} but {texts.path} from {encoders[1]}; "
            "make both with the same CLIP"
        )
    if images.info.shape != texts.info.shape:
        raise UserError(
            f"{images.path} holds embeddings of {images.info.shape[0]} numbers but {texts.path} "
            f"of {texts.info.shape[0]}; make both with the same CLIP"
        )
    samples = some_samples(images, count, generator)
    return read_some(images, samples, generator), read_some(texts, samples, generator)
