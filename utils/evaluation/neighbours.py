"""Which training images are closest to given ones: has the network learnt some of them by heart?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from utils.config.schema import Config
from utils.data.embeddings import BATCH, some_samples
from utils.data.images import list_images
from utils.data.lmdb_reader import LMDBReader

COMPARED = 256  # training images that tell which cosine is usual


def open_training_embeddings(config: Config, encoder: str, dim: int) -> LMDBReader | None:
    """`data.feat_path`, if it is there and holds the training images' embeddings by this CLIP."""
    path = config.data.feat_path
    if path is None or not path.exists():
        return None
    reader = LMDBReader(path)
    is_same = reader.info.meta.get("encoder", encoder) == encoder
    return reader if reader.info.kind == "y" and reader.info.shape == (dim,) and is_same else None


def nearest(
    embeddings: torch.Tensor, reader: LMDBReader, leave_out: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """(N, D) -> index (N,) of the nearest sample of a database, by cosine, and the cosine (N,).

    `leave_out`: (N,) a sample that does not count, for each. The database is read in parts.
    """
    embeddings = F.normalize(embeddings.float().cpu(), dim=1)
    best, index = torch.full((len(embeddings),), -2.0), torch.zeros(len(embeddings)).long()
    for rows in torch.arange(reader.info.length).split(BATCH):
        y = F.normalize(torch.from_numpy(reader.read(rows.numpy())), dim=1)
        cosines = embeddings @ y.T  # (N, B)
        if leave_out is not None:
            cosines[leave_out[:, None] == rows] = -2
        here, where = cosines.max(dim=1)
        index = torch.where(here > best, rows[where], index)
        best = torch.maximum(best, here)
    return index, best


def usual_cosine(reader: LMDBReader, seed: int = 0) -> float | None:
    """Median cosine of training images to the nearest other one; None if there is only one."""
    if reader.info.length < 2:
        return None
    chosen = some_samples(reader, COMPARED, torch.Generator().manual_seed(seed))
    y = torch.from_numpy(reader.read(chosen.numpy()))
    return float(nearest(y, reader, leave_out=chosen)[1].median())


def training_image_paths(
    config: Config, reader: LMDBReader, indices: Sequence[int] | np.ndarray
) -> list[Path] | None:
    """Files of training images by their index; None if the images are not there any more."""
    folder, names = config.data.image_dir, reader.info.meta.get("names")
    if folder is None or not folder.exists():
        return None
    samples = list_images(folder)
    if names is None:
        return [samples[i].path for i in indices] if len(samples) == reader.info.length else None
    by_name = dict(samples)
    found = [by_name.get(names[i]) for i in indices]
    return None if None in found else found
