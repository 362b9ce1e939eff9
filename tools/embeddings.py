"""Embeddings of a feature database for measurements: random ones, alone or in pairs."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F

from utils.base.errors import UserError
from utils.data.embeddings import some_samples
from utils.data.lmdb_reader import LMDBReader, check_same_samples, expect_kind


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
