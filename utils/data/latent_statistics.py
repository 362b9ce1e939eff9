"""Mean and deviation of each channel of a database of latents, measured and compared with it."""

from __future__ import annotations

import contextlib
import json
import shlex
from pathlib import Path

import torch

from utils.base.errors import UserError, note
from utils.base.files import write_text
from utils.config.schema import Config
from utils.data.embeddings import made_from
from utils.data.lmdb_reader import LMDBReader, read_meta
from utils.pretrained.latent_statistics import (
    KEY,
    SCRIPT,
    LatentStatistics,
    config_latent_statistics,
    read_latent_statistics,
)

LATENT_STATISTICS = "latent_statistics.json"
BATCH = 256  # latents read at a time


def write_latent_statistics(database: Path) -> None:
    """Write mean and deviation of each channel into a database's folder, LATENT_STATISTICS.

    Moments count as all latents that are sampled from them. The file also names the latents and
    their VAE. Statistics of these latents stay.
    """
    reader, path = LMDBReader(database), database / LATENT_STATISTICS
    meta = reader.info.meta
    about = {
        "vae": meta.get("encoder"),
        "scale_factor": meta.get("scale_factor"),
        "latents": made_from(meta),
    }
    with contextlib.suppress(UserError):
        if about["latents"] and read_latent_statistics(path).about == about:
            return
    parts = 2 if meta.get("z_holds") == "moments" else 1  # mean and log variance, or latents
    sums = torch.zeros(2, reader.info.shape[0] // parts, dtype=torch.float64)
    for rows in torch.arange(reader.info.length).split(BATCH):
        z = torch.from_numpy(reader.read(rows.numpy())).double()
        mean, *log_variance = z.chunk(parts, dim=1)
        square = mean.square() + sum(part.exp() for part in log_variance)
        sums += torch.stack([x.mean(dim=(2, 3)).sum(dim=0) for x in (mean, square)])
    mean, square = sums / reader.info.length
    values = {
        **about,
        "images": reader.info.length,
        "mean": mean.tolist(),
        "std": (square - mean.square()).clamp(min=0).sqrt().tolist(),
    }
    write_text(path, json.dumps(values, indent=1) + "\n")


def latent_statistics_of(config: Config) -> LatentStatistics | None:
    """Return the statistics by which a training on `data.root` normalises, or None for none.

    Raises UserError if they do not fit these latents, or lie beside others than those that were
    measured. Prints a note if they lie elsewhere and were measured from others than `data.root`.
    """
    root, path = config.data.root, config.encoders.latent_statistics
    if root is None or path is None:
        return None
    meta = read_meta(root)
    found = config_latent_statistics(
        config.encoders, config.model.in_channels, meta.get("encoder"), meta.get("scale_factor")
    )
    measured = found.about.get("latents") if found else None
    beside, here = made_from(read_meta(path.parent)), made_from(meta)
    again = f"measure them again: {shlex.join(['python', SCRIPT, *config.words])}"
    if measured and beside not in ("", measured):
        raise UserError(
            f"{KEY}: {path} was measured from other latents than those beside it; {again}"
        )
    if measured and not beside and here not in ("", measured):
        note(
            f"{KEY}: {path} was measured from other latents than {root} holds; if these replaced "
            f"them, {again}"
        )
    return found
