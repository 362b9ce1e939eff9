"""Twelve random latents and embeddings, and databases of them."""

from pathlib import Path

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
