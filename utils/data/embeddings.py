"""The mean of all image embeddings, their directions, and random samples of a feature database."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.numpy import load_file

from utils.base.errors import UserError, refusing
from utils.base.files import write_whole
from utils.data.lmdb_reader import LMDBReader

IMAGE_MEAN = "image_mean.npy"
BATCH = 4096  # embeddings read at a time


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
    """Read (dim,) float32 from a file of write_image_mean; raise a UserError if it does not fit.

    A release folder holds it as safetensors.
    """
    if not path.is_file():
        raise UserError(
            f"encoders.image_mean: {path} is not there; preprocess_scripts/clip_encode_img.py "
            f"writes {IMAGE_MEAN} beside the embeddings; or copy it there or beside the checkpoint "
            "that names it, or set encoders.image_mean=null"
        )
    with refusing(f"encoders.image_mean: {path} cannot be read"):
        is_release = path.suffix == ".safetensors"
        mean = load_file(path)["image_mean"] if is_release else np.load(path, allow_pickle=False)
    if not isinstance(mean, np.ndarray) or mean.shape != (dim,):
        raise UserError(
            f"encoders.image_mean: {path} does not hold {dim} numbers, the width of embeddings"
        )
    if mean.dtype.kind not in "fiu":
        raise UserError(f"encoders.image_mean: {path} holds {mean.dtype}, not numbers")
    return torch.from_numpy(mean.astype(np.float32))


def some_samples(reader: LMDBReader, count: int, generator: torch.Generator) -> torch.Tensor:
    """Draw samples without repetition: their indices, (min(count, length),) int64."""
    return torch.randperm(reader.info.length, generator=generator)[:count]


def read_directions(reader: LMDBReader, most: int) -> torch.Tensor:
    """Read the first embedding of each sample, scaled to unit length, (N, D) float32.

    Where there are more than `most` samples, it reads `most` of them, drawn with a fixed seed.
    """
    rows = some_samples(reader, most, torch.Generator().manual_seed(0)).sort().values
    parts = [torch.from_numpy(reader.read(part.numpy())) for part in rows.split(BATCH)]
    return F.normalize(torch.cat(parts), dim=1)
