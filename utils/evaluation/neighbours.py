"""Nearest training images of generated images: they show if the network memorised some."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from utils.data.embeddings import BATCH, some_samples
from utils.data.file_names import numbered
from utils.data.images import list_images
from utils.data.lmdb_reader import LMDBReader
from utils.data.source_files import SourceFiles, read_records

COMPARED = 256  # training images in the median of `usual_cosine`


def open_training_embeddings(path: Path | None, encoder: str, dim: int) -> LMDBReader | None:
    """Open a database; None if it is missing, or holds no embeddings of this CLIP."""
    if path is None or not path.exists():
        return None
    reader = LMDBReader(path)
    is_same = reader.info.meta.get("encoder", encoder) == encoder
    return reader if reader.info.kind == "y" and reader.info.shape == (dim,) and is_same else None


def nearest(
    embeddings: torch.Tensor,
    reader: LMDBReader,
    leave_out: torch.Tensor | None = None,
    count: int = 1,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Find the `count` nearest samples of a database by cosine, the nearest first.

    (N, D) -> index (N, count), cosine (N, count). `leave_out`: (N,) index of one sample for each
    row that does not count. The database is read in parts, and holds `count` samples or more.
    """
    embeddings = F.normalize(embeddings.float().cpu(), dim=1)
    best = torch.full((len(embeddings), count), -2.0)
    index = torch.zeros_like(best, dtype=torch.int64)
    for rows in torch.arange(reader.info.length).split(BATCH):
        y = F.normalize(torch.from_numpy(reader.read(rows.numpy())), dim=1)
        cosines = embeddings @ y.T  # (N, B)
        if leave_out is not None:
            cosines[leave_out[:, None] == rows] = -2
        both = torch.cat([best, cosines], dim=1)
        best, where = both.topk(count, dim=1)
        index = torch.cat([index, rows.expand(len(cosines), -1)], dim=1).gather(1, where)
    return index, best


def usual_cosine(reader: LMDBReader, seed: int = 0) -> float | None:
    """Return the median cosine of training images and their nearest others; None for one image."""
    if reader.info.length < 2:
        return None
    samples = some_samples(reader, COMPARED, torch.Generator().manual_seed(seed))
    y = torch.from_numpy(reader.read(samples.numpy()))
    return float(nearest(y, reader, leave_out=samples)[1].median())


def training_image_paths(
    folder: Path | None, reader: LMDBReader, indices: Sequence[int] | np.ndarray
) -> list[Path] | None:
    """Return files of training images in `folder` by index; None if one is gone or replaced."""
    names = reader.info.meta.get("names")
    if folder is None or not folder.exists():
        return None
    samples = list_images(folder)
    if names is None:
        return [samples[i].path for i in indices] if len(samples) == reader.info.length else None
    there = numbered(sample.name for sample in samples)
    by_name = dict(zip(there, (sample.path for sample in samples), strict=True))
    recorded = numbered(names)
    found = [path for i in indices if (path := by_name.get(recorded[i])) is not None]
    if len(found) < len(indices):
        return None
    records = read_records(reader.folder)
    if len(records) == reader.info.length and SourceFiles(found).compare(records[indices])[0]:
        return None
    return found
