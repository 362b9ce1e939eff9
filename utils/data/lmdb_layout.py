"""Databases of latents and embeddings (LMDB) in the layout of the published text-to-face code.

- `z-{i}`: latent of sample i, raw float32 (C, H, W)
- `y-{i}-{j}`: embedding j of sample i, raw float32
- `map-{i}`: patch features of sample i, raw float16 (F, G, G); ours, see models/patch_features.py
- `length`, and `n_features` for embeddings: 8-byte big-endian integers
- `meta`: JSON about the source of the numbers, which this project adds; readers do without it.
  Beside the database, `files.bin` holds a record of each sample's file, see source_files.py

`length` is written last: a database without it is incomplete.

MaskDiT's ImageNet databases, with class labels, are read too:

- `z-{i}`: moments of the latent before scaling
- `y-{i}`: class of image i in decimal digits; `length` is in decimal digits too
- `feat-{i}`: external features, raw float32

Their second half may repeat the first with mirrored images.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import weakref
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import lmdb
import numpy as np

from utils.base.errors import UserError
from utils.base.locks import writer_of
from utils.data.file_names import nfc

DatabaseKind = Literal["z", "y", "map"]  # latents, embeddings, patch features
CHUNK = 1024  # samples read at once when a whole database is loaded
Z_KEY, Y_KEY, MAP_KEY, FEATURE_KEY = b"z-%d", b"y-%d-%d", b"map-%d", b"feat-%d"


def stored_dtype(kind: DatabaseKind) -> np.dtype[Any]:
    """Return the type of the numbers in a database: float16 for patch features, else float32."""
    return np.dtype("<f2" if kind == "map" else "<f4")


def first_key(kind: DatabaseKind, sample: int) -> bytes:
    """Return the key of a sample: of its latent, its first embedding, or its patch features."""
    return {"z": b"z-%d", "y": b"y-%d-0", "map": MAP_KEY}[kind] % sample


class UnmadeDatabase(UserError):
    """A database that is to be made; `problem` says why, `remedy` precedes the command for it."""

    def __init__(self, path: Path, problem: str, advice: str, remedy: str = "make it") -> None:
        super().__init__(f"{path}: {problem}; {advice}")
        self.path, self.problem, self.remedy = path, problem, remedy


def names_hash(names: Iterable[str]) -> str:
    """Return an identity of a database's samples and their order: sha256 of the joined names."""
    # File names need not be UTF-8; other bytes are hashed as they are on disk.
    return hashlib.sha256("\n".join(names).encode("utf-8", "surrogateescape")).hexdigest()


def same_names(first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    """Return True if two `meta` hold the same names: by their hash, or in NFC."""
    if first.get("names_hash") == second.get("names_hash"):
        return True
    names = [[nfc(name) for name in meta.get("names", ())] for meta in (first, second)]
    return bool(names[0]) and names[0] == names[1]


def first_missing(txn: lmdb.Transaction[bytes], kind: DatabaseKind, length: int) -> int:
    """Return the first of `length` samples that is missing, by bisection: writing is in order."""
    low, high = 0, length
    while low < high:
        middle = (low + high) // 2
        if txn.get(first_key(kind, middle)) is None:
            high = middle
        else:
            low = middle + 1
    return low


def count_embeddings(txn: lmdb.Transaction[bytes], sample: int) -> int:
    """Count the embeddings of a sample."""
    return next(j for j in itertools.count() if txn.get(b"y-%d-%d" % (sample, j)) is None)


# LMDB forbids to open a database twice in one process, so all readers use one environment.
_environments: weakref.WeakValueDictionary[Path, lmdb.Environment] = weakref.WeakValueDictionary()


def database_folder(path: Path) -> Path:
    """Return the folder of a database; published configs name the parent of the training split."""
    is_parent = not (path / "data.mdb").is_file() and (path / "train" / "data.mdb").is_file()
    return path / "train" if is_parent else path


def open_database(path: Path) -> lmdb.Environment:
    """Open a database for reading.

    Raises a UserError if there is none at `path`, if it is damaged, or if it is being written.
    """
    path = database_folder(path)
    key = path.resolve()
    environment = _environments.get(key)
    if environment is None:
        if writer := writer_of(path):
            raise UserError(
                f"{path}: incomplete database, being written by {writer}; wait until it is complete"
            )
        if not (path / "data.mdb").is_file():
            raise UnmadeDatabase(
                path, "no database there", "the scripts in preprocess_scripts/ make it"
            )
        try:
            # No lock file: folders may be read-only, and nothing writes to a complete database.
            environment = lmdb.open(os.fsencode(path), readonly=True, lock=False, readahead=False)
        except lmdb.Error as error:
            raise UserError(f"{path}: not a readable database ({error})") from error
        check_whole(path, environment)
        _environments[key] = environment
    return environment


def check_whole(path: Path, environment: lmdb.Environment) -> None:
    """Raise a UserError, and close the database, if its file is shorter than its pages.

    The file is mapped into memory: reading a page that is missing would end the process (SIGBUS).
    """
    expected = (environment.info()["last_pgno"] + 1) * environment.stat()["psize"]
    size = (path / "data.mdb").stat().st_size
    if size < expected:
        environment.close()
        raise UserError(
            f"{path}: data.mdb is truncated, {size} of {expected} bytes are there; copy it again, "
            "or delete the database and make it again"
        )


def read_labels(txn: lmdb.Transaction[bytes], length: int, path: Path) -> np.ndarray | None:
    """Read the classes of a database as (N,) int64; return None if it holds no labels.

    N is `length`, or half of it if the second half repeats the first with mirrored images. Raises a
    UserError naming a label that is missing or not a number.
    """
    if txn.get(b"y-0") is None:
        return None
    stored = [txn.get(b"y-%d" % i, b"") for i in range(length)]
    if damaged := [i for i, value in enumerate(stored) if not value.isdigit()]:
        raise UserError(
            f"{path}: label y-{damaged[0]} is missing or damaged; delete the database and make it "
            "again"
        )
    labels = np.array(stored).astype(np.int64)
    first, second = np.array_split(labels, 2)
    return first if np.array_equal(first, second) else labels
