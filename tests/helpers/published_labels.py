"""Databases with class labels in the layout of the published MaskDiT code."""

from pathlib import Path

import lmdb
import numpy as np


def write_published(path: Path, name: str, samples: np.ndarray, labels: list[int]) -> Path:
    """Write samples (N, ...) and their labels like MaskDiT's script; return `path`.

    Labels and the length are decimal digits; there is no record of metadata.
    """
    path.mkdir(parents=True)
    with lmdb.open(str(path), map_size=1 << 24) as env, env.begin(write=True) as txn:
        for i, (sample, label) in enumerate(zip(samples, labels, strict=True)):
            txn.put(f"{name}-{i}".encode(), sample.tobytes())
            txn.put(f"y-{i}".encode(), str(label).encode())
        txn.put(b"length", str(len(labels)).encode())
    return path
