"""Read databases of latents and embeddings in batches; lmdb_layout.py describes their layout."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import lmdb
import numpy as np
import torch

from models.finite import is_finite
from utils.base.errors import UserError
from utils.data.lmdb_layout import (
    CHUNK,
    FEATURE_KEY,
    MAP_KEY,
    Y_KEY,
    Z_KEY,
    DatabaseKind,
    UnmadeDatabase,
    count_embeddings,
    database_folder,
    first_key,
    first_missing,
    open_database,
    read_labels,
    same_names,
    stored_dtype,
)
from utils.data.source_files import read_records


@dataclass(frozen=True)
class LMDBInfo:
    """Contents of a complete database."""

    kind: DatabaseKind
    length: int  # samples
    n_features: int  # embeddings that every sample has at least; 1 for latents and maps
    counts: np.ndarray  # (length,) embeddings of each sample; 1 for latents and maps
    shape: tuple[int, ...]  # of one latent (C, H, W), one embedding (D,) or one map (F, G, G)
    meta: Mapping[str, Any]  # empty for databases in the plain published layout
    labels: np.ndarray | None = None  # (length,) int64 classes, if the database holds them


class LMDBReader:
    """A reader of batches by index; `info` describes the database."""

    def __init__(self, path: str | Path, channels: int = 4) -> None:
        """Open a database; raise a UserError if there is none, or an incomplete or damaged one.

        `channels` of a latent are needed if the database has no `meta`, which records the shape.
        Its latents are then square. Beside class labels they are moments, of twice the channels.
        """
        self.path = Path(path)
        self._env = open_database(self.path)
        with self._env.begin() as txn:
            self.info = self._read_info(txn, channels)
        # Row of a sample's first embedding in a table of all embeddings.
        self._first_row = np.cumsum(self.info.counts) - self.info.counts
        self._table: torch.Tensor | None = None

    def _read_info(self, txn: lmdb.Transaction[bytes], channels: int) -> LMDBInfo:
        """Read `info`; raise a UserError if the database is incomplete or of another layout."""
        meta = json.loads(txn.get(b"meta") or "{}")
        end = txn.get(b"length")
        keys = (Z_KEY, MAP_KEY, Y_KEY, FEATURE_KEY)
        starts = {key: txn.get(key.replace(b"%d", b"0")) for key in keys}
        self._key, first = next((item for item in starts.items() if item[1]), (Y_KEY, None))
        kinds: dict[bytes, DatabaseKind] = {Z_KEY: "z", MAP_KEY: "map"}
        kind = kinds.get(self._key, "y")
        self._dtype = stored_dtype(kind)
        if end is None:
            total = meta.get("total", 0)
            raise UnmadeDatabase(
                self.path,
                f"incomplete database ({first_missing(txn, kind, total)} of {total} samples)",
                "start the script that makes it again: it goes on from there",
            )
        if first is None:
            raise UserError(f"{self.path}: holds neither latents (z-0) nor embeddings (y-0-0)")
        length = int(end) if end.isdigit() else int.from_bytes(end, "big")
        floats = len(first) // self._dtype.itemsize
        labels = read_labels(txn, length, self.path)
        length = length if labels is None else len(labels)
        n_features = 1
        if self._key == Y_KEY:
            stored = txn.get(b"n_features")
            n_features = int.from_bytes(stored, "big") if stored else count_embeddings(txn, 0)
        counts = np.asarray(meta.get("counts", np.full(length, n_features)))
        shape = tuple(meta["shape"]) if "shape" in meta else (floats,)
        if kind == "z" and "shape" not in meta:
            channels *= 1 if labels is None else 2
            side = round((floats / channels) ** 0.5)
            shape = (channels, side, side)
        if floats != np.prod(shape):
            raise UserError(f"{self.path}: samples of {floats} numbers do not have shape {shape}")
        return LMDBInfo(kind, length, n_features, counts, shape, meta, labels)

    @property
    def folder(self) -> Path:
        """Return the folder of the database; `path` may be its parent."""
        return database_folder(self.path)

    @property
    def nbytes(self) -> int:
        """Return the bytes that all samples take in memory."""
        return int(self.info.counts.sum() * np.prod(self.info.shape) * self._dtype.itemsize)

    def load(self) -> None:
        """Read all samples into one array, from which later reads are answered."""
        if self._table is None:
            rows = int(self.info.counts.sum())
            table = np.empty((rows, *self.info.shape), self._dtype)
            samples = np.repeat(np.arange(self.info.length), self.info.counts)
            features = np.arange(rows) - self._first_row[samples]
            for start in range(0, rows, CHUNK):
                part = slice(start, start + CHUNK)
                table[part] = self.read(samples[part], features[part], finite=False)
            self._table = torch.from_numpy(table)

    def read(
        self,
        indices: Sequence[int] | np.ndarray,
        feature: int | Sequence[int] | np.ndarray = 0,
        *,
        finite: bool = True,
    ) -> np.ndarray:
        """Read (B, C, H, W) latents or (B, D) embeddings, float32, in one transaction.

        Patch features (B, F, G, G) are float16.

        `feature` chooses among a sample's embeddings: one number for all samples, or one for each.
        Raises a UserError if a sample is missing or damaged, or, with `finite`, if one holds NaN or
        infinite numbers.
        """
        indices = np.asarray(indices)
        samples = self._read(indices, feature)
        if finite and (fault := self.fault(samples, indices)):
            raise UserError(fault)
        return samples

    def fault(self, samples: np.ndarray, indices: np.ndarray) -> str | None:
        """Return a line about the first of the samples at `indices` that is not finite, or None."""
        if is_finite(samples):
            return None
        index = next(int(i) for i, one in zip(indices, samples, strict=True) if not is_finite(one))
        named = f" ({names[index]})" if (names := self.info.meta.get("names")) else ""
        return (
            f"{self.path}: sample {index}{named} holds NaN or infinite numbers; delete the "
            "database and make it again, with encoders.precision=bf16 or float32 if it was fp16"
        )

    def _read(self, indices: np.ndarray, feature: int | Sequence[int] | np.ndarray) -> np.ndarray:
        if self._table is not None:
            rows = torch.from_numpy(self._first_row[indices] + feature)
            return self._table.index_select(0, rows).numpy()  # faster than NumPy's take
        feature = np.broadcast_to(feature, indices.shape)
        if self._key == Y_KEY:
            pairs = zip(indices.tolist(), feature.tolist(), strict=True)
            keys = [self._key % pair for pair in pairs]
        else:
            keys = [self._key % i for i in indices.tolist()]
        with self._env.begin(buffers=True) as txn:
            values = [txn.get(key, b"") for key in keys]
            joined = bytearray().join(values)  # the only copy: frombuffer makes a view of it
            size = self._dtype.itemsize * int(np.prod(self.info.shape))
            for key, value in zip(keys, values, strict=True):
                if len(value) != size:
                    raise self._damage(key)
        return np.frombuffer(joined, self._dtype).reshape(-1, *self.info.shape)

    def all_samples(self, first: int = 0) -> Iterator[list[np.ndarray]]:
        """Yield all samples from `first` on, in batches for LMDBWriter.append.

        The arrays of a batch may be views of the database, valid until the next batch is asked for.
        """
        for start in range(first, self.info.length, CHUNK):
            samples = range(start, min(start + CHUNK, self.info.length))
            with self._env.begin(buffers=True) as txn:
                if self.info.kind != "y":
                    yield [self._view(txn, first_key(self.info.kind, i)) for i in samples]
                    continue
                rows = [[Y_KEY % (i, j) for j in range(self.info.counts[i])] for i in samples]
                views = [[self._view(txn, key) for key in row] for row in rows]
                yield [row[0][None] if len(row) == 1 else np.stack(row) for row in views]

    def _view(self, txn: lmdb.Transaction[memoryview], key: bytes) -> np.ndarray:
        """Return one latent, embedding or map as a view of the database."""
        value = txn.get(key)
        if value is None:
            raise self._damage(key)
        return np.frombuffer(value, self._dtype).reshape(self.info.shape)

    def _damage(self, key: bytes) -> UserError:
        """Return the error about a sample that is missing or of a wrong size."""
        return UserError(
            f"{self.path}: {key.decode()} is missing or damaged; delete the database and make it "
            "again"
        )


def is_complete(path: Path) -> bool:
    """Return True if there is a database that has all its samples."""
    return open_if_complete(path) is not None


def open_if_complete(path: Path) -> lmdb.Environment | None:
    """Open a database for reading, or return None if it is not there, incomplete or damaged."""
    if not (path / "data.mdb").is_file():
        return None
    try:
        environment = open_database(path)
    except UserError:  # damaged, or being written
        return None
    with environment.begin() as txn:
        return environment if txn.get(b"length") is not None else None


class DatabaseShape(NamedTuple):
    """Shape of the samples of a database."""

    kind: DatabaseKind
    shape: tuple[int, ...]  # of an embedding or latent; (floats,) if the database records none


def database_shape(path: Path) -> DatabaseShape | None:
    """Return the shape of a database's samples; None if it is missing, incomplete or damaged."""
    env = open_if_complete(path) or open_if_complete(path / "train")
    if env is None:
        return None
    with env.begin() as txn:
        meta = json.loads(txn.get(b"meta") or "{}")
        latent = txn.get(b"z-0")
        first = latent or txn.get(b"y-0-0") or txn.get(b"feat-0")
        if first is None:
            return None
        floats, *sides = meta.get("shape", (len(first) // 4,))
        if latent is None:
            return DatabaseShape("y", (floats, *sides))
        has_moments = txn.get(b"y-0") is not None or meta.get("z_holds") == "moments"
        return DatabaseShape("z", (floats // 2 if has_moments else floats, *sides))


def read_meta(path: Path) -> Mapping[str, Any]:
    """Return the `meta` of a complete database; empty if there is none."""
    env = open_if_complete(path) or open_if_complete(path / "train")
    if env is None:
        return {}
    with env.begin() as txn:
        meta: Mapping[str, Any] = json.loads(txn.get(b"meta") or "{}")
        return meta


def expect_kind(reader: LMDBReader, kind: DatabaseKind) -> None:
    """Raise a UserError if a database holds samples of another kind."""
    if reader.info.kind != kind:
        names = {"z": "latents", "y": "embeddings", "map": "patch features"}
        raise UserError(
            f"{reader.path}: holds {names[reader.info.kind]} where {names[kind]} are expected"
        )


def check_same_samples(z: LMDBReader, y: LMDBReader) -> None:
    """Raise a UserError unless both databases have equal lengths, labels, names and image files.

    Labels, names and contents of files are compared if both databases hold them.
    """
    if z.info.length != y.info.length:
        raise UserError(
            f"{z.path} holds {z.info.length} samples but {y.path} holds {y.info.length}; "
            "make both from the same image folder"
        )
    first, second = z.info.labels, y.info.labels
    if first is not None and second is not None and not np.array_equal(first, second):
        raise UserError(f"{z.path} and {y.path} hold different class labels for the same images")
    hashes = [reader.info.meta.get("names_hash") for reader in (z, y)]
    if None not in hashes and not same_names(z.info.meta, y.info.meta):
        pairs = zip(*(reader.info.meta.get("names", []) for reader in (z, y)), strict=False)
        different = next(((i, a, b) for i, (a, b) in enumerate(pairs) if a != b), None)
        where = "" if different is None else " (sample {}: {} and {})".format(*different)
        raise UserError(
            f"{z.path} and {y.path} were made from different images{where}; "
            "make both from the same image folder"
        )
    _check_same_files(z, y)


def _check_same_files(z: LMDBReader, y: LMDBReader) -> None:
    """Raise UnmadeDatabase for the older of two databases of images that were changed between."""
    hashes = [reader.info.meta.get("content_hash") for reader in (z, y)]
    if None in hashes or hashes[0] == hashes[1] or y.info.meta.get("y_holds") == "captions":
        return
    first, second = (read_records(reader.folder)["digest"] for reader in (z, y))
    where = ""
    if len(first) == len(second) and len(changed := np.flatnonzero((first != second).any(axis=1))):
        names = z.info.meta.get("names") or range(len(first))
        where = f": {len(changed)} of {len(first)} differ, the first is {names[int(changed[0])]}"
    older, newer = sorted((z, y), key=lambda r: (r.folder / "data.mdb").stat().st_mtime)
    problem = f"made from other images of the same names than {newer.path}{where}"
    remedy = "delete this older one and make it again"
    raise UnmadeDatabase(older.path, problem, remedy, remedy)
