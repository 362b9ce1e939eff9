"""Random samples of feature databases for measurements: embeddings alone, or in pairs."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F

from utils.base.errors import UserError
from utils.data.embeddings import some_samples
from utils.data.lmdb_reader import LMDBReader, check_same_samples, expect_kind


def open_embeddings(path: Path | None, option: str, key: str) -> LMDBReader:
    """Open the feature database at `path`.

    Raise UserError if it holds no embeddings, or if `path` is None; the message then asks for the
    command-line `option` or the config's `key`.
    """
    if path is None:
        raise UserError(f"no database of embeddings is named: give {option}, or set {key}")
    reader = LMDBReader(path)
    expect_kind(reader, "y")
    return reader


def random_directions(count: int, dim: int, generator: torch.Generator) -> torch.Tensor:
    """Return unit vectors (count, dim), uniform on the sphere."""
    return F.normalize(torch.randn(count, dim, generator=generator), dim=1)


def read_some(
    reader: LMDBReader, samples: torch.Tensor, generator: torch.Generator
) -> torch.Tensor:
    """Return one embedding of each sample, (N, D) float32; it is random where there are several.

    samples: (N,) int64, rows of the database.
    """
    rows = samples.numpy()
    uniform = torch.rand(len(samples), generator=generator).numpy()
    which = (uniform * reader.info.counts[rows]).astype(int)
    return torch.from_numpy(reader.read(rows, which))


def read_pairs(
    images: LMDBReader, texts: LMDBReader, count: int, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return image and caption embeddings of at most `count` random samples, (N, D) float32 each.

    Raise UserError if the two databases differ in their samples or in their CLIP.
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
