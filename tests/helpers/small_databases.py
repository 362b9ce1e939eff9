"""Twelve random latents and embeddings, databases of them, and damage to databases."""

from pathlib import Path

import lmdb
import numpy as np

from utils.data.lmdb_layout import names_hash
from utils.data.lmdb_writer import LMDBWriter

Z = np.random.default_rng(0).standard_normal((12, 4, 2, 2), np.float32)
Y = np.random.default_rng(1).standard_normal((12, 3, 16), np.float32)
META = {"encoder": "a", "names": [str(i) for i in range(12)]}
META["names_hash"] = names_hash(META["names"])


def write(path: Path, kind: str, samples: list | np.ndarray, step: int = 5, **meta) -> Path:
    """Write a database in batches of `step` samples; `meta` adds to META."""
    with LMDBWriter(path, kind, META | meta, len(samples)) as writer:
        for start in range(0, len(samples), step):
            writer.append(samples[start : start + step])
    return path


def spoil(path: Path, *keys: str, value: float = np.nan) -> None:
    """Make samples of a complete database NaN, as versions that checked nothing could write them.

    The database must not have been opened in this process.
    """
    with (
        lmdb.open(str(path), map_size=1 << 26, lock=False) as env,
        env.begin(write=True) as txn,
    ):
        for key in keys:
            numbers = np.frombuffer(txn.get(key.encode()), np.float32)
            txn.put(key.encode(), np.full_like(numbers, value).tobytes())
