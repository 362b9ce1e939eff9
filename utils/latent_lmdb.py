"""Databases of latents and embeddings (LMDB) in the published layout.

`z-{i}` holds the latent of sample i, raw float32 C x H x W; `y-{i}-{j}` embedding j of sample i,
raw float32; `length` and (embeddings only) `n_features` are 8-byte big-endian integers. Ours add
`meta`, JSON about where the numbers come from; readers do without it. A database without `length`
is incomplete. Databases with class labels are read too (utils/class_labels.py).
"""

import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import lmdb
import numpy as np
import torch

from utils.class_labels import read_labels, stored_length
from utils.errors import UserError
from utils.lmdb_environment import check_whole, open_database
from utils.locks import FolderLock

Kind = Literal["z", "y"]
CHUNK = 1024  # samples read at once when a whole database is loaded
Z_KEY, Y_KEY, FEATURE_KEY = b"z-%d", b"y-%d-%d", b"feat-%d"


def names_hash(names: Iterable[str]) -> str:
    """Identifies which samples a database holds, in which order (sha256 of the joined names)."""
    # File names need not be UTF-8; what is not stays as it is on disk.
    return hashlib.sha256("\n".join(names).encode("utf-8", "surrogateescape")).hexdigest()


class LMDBWriter:
    """Appends samples in order to a database, and goes on where an earlier run was cut off.

    `done` is the first index that is still to be written; `length` is written with the last one.
    Use as a context manager.
    """

    def __init__(self, path: str | Path, kind: Kind, meta: Mapping[str, Any], length: int) -> None:
        """`meta`: plain JSON values that identify source and encoder; `length`: samples in all.

        Raises a UserError if there is a database already that was made from something else or is
        damaged, if it cannot be written to, or if another process is writing to it.
        """
        self.path, self.kind, self.length = Path(path), kind, length
        self._meta = json.loads(json.dumps({**meta, "total": length}))
        self._has_appended = False
        self._lock: FolderLock | None = None
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._env = _open_complete(self.path)
            if self._env is None:
                self._lock = FolderLock(self.path, "database")
                # LMDB's own lock file is a mapped one: a full disk would end the process (SIGBUS).
                self._env = lmdb.open(str(self.path), map_size=1 << 26, lock=False)
                check_whole(self.path, self._env)
            self._resume()
        except (OSError, lmdb.Error) as error:
            self._close()
            raise UserError(f"{self.path}: cannot be written as a database ({error})") from error
        except BaseException:
            self._close()
            raise

    def _close(self) -> None:
        if self._lock is not None:  # else it is only looked at, and shared with readers
            if self._env is not None:
                self._env.close()
            self._lock.release()

    def _resume(self) -> None:
        with self._env.begin() as txn:
            stored = json.loads(txn.get(b"meta") or "null")
            if stored is None and txn.stat()["entries"]:
                raise UserError(
                    f"{self.path}: a database of unknown origin is there already; "
                    "delete it or choose another --out"
                )
            self.done = _first_missing(txn, self.kind, self.length)
            self.complete = txn.get(b"length") is not None
            # Samples not reached yet may have changed; those that are written may not.
            may_change = {"names"}
            if not self.complete and stored and self._same_so_far(stored):
                may_change |= {"names_hash", "total"}
            different = [
                f"{key} {_short(stored.get(key))} there, {_short(value)} now"
                for key, value in self._meta.items()
                if stored is not None and stored.get(key) != value and key not in may_change
            ]
            if different:
                raise UserError(
                    f"{self.path}: made differently before ({'; '.join(different)}); "
                    "delete it or choose another --out"
                )
            self._meta = {**(stored or {}), **self._meta}
            self._counts = [] if self.complete else _count_all(txn, self.kind, self.done)

    def _same_so_far(self, stored: Mapping[str, Any]) -> bool:
        names = [meta.get("names", [])[: self.done] for meta in (stored, self._meta)]
        return len(names[0]) == self.done < self.length and names[0] == names[1]

    def append(self, samples: np.ndarray | Sequence[np.ndarray]) -> None:
        """Write the next samples in one transaction: all or nothing of them is kept.

        `samples`: (B, C, H, W) latents; or the embeddings of B images, each (n, D), n >= 1.
        Raises a UserError if the disk is full; what was written before stays.
        """
        arrays = [np.ascontiguousarray(sample, "<f4") for sample in samples]
        if not arrays or self.done + len(arrays) > self.length:
            raise ValueError(f"{len(arrays)} samples after {self.done} of {self.length}")
        shape = list(arrays[0].shape if self.kind == "z" else arrays[0].shape[1:])
        items: list[tuple[bytes, Any]] = []
        if not self._has_appended:
            self._meta = {"shape": shape, "dtype": "float32"} | self._meta
            items.append((b"meta", json.dumps(self._meta).encode()))
        if shape != self._meta["shape"]:
            raise ValueError(f"samples of shape {shape} after such of shape {self._meta['shape']}")
        if self.kind == "z":
            items += [(b"z-%d" % i, z.data) for i, z in enumerate(arrays, self.done)]
        else:
            numbered = [
                (i, j, y) for i, ys in enumerate(arrays, self.done) for j, y in enumerate(ys)
            ]
            items += [(b"y-%d-%d" % (i, j), y.data) for i, j, y in numbered]
        counts = self._counts + [len(ys) for ys in arrays if self.kind == "y"]
        if self.done + len(arrays) == self.length:
            items += self._last_items(counts)
        self._commit(items)
        self.done += len(arrays)
        self._counts, self._has_appended = counts, True
        self.complete = self.done == self.length

    def _last_items(self, counts: list[int]) -> list[tuple[bytes, bytes]]:
        """What makes the database complete."""
        items = []
        if self.kind == "y":
            items.append((b"n_features", min(counts).to_bytes(8, "big")))
            if min(counts) != max(counts):
                items.append((b"meta", json.dumps(self._meta | {"counts": counts}).encode()))
        return [*items, (b"length", self.length.to_bytes(8, "big"))]

    def _commit(self, items: list[tuple[bytes, Any]]) -> None:
        while True:
            try:
                with self._env.begin(write=True) as txn:
                    for key, value in items:
                        txn.put(key, value)
                return
            except lmdb.MapFullError:
                self._env.set_mapsize(2 * self._env.info()["map_size"])
            except lmdb.Error as error:
                raise UserError(
                    f"{self.path}: cannot write sample {self.done} of {self.length} ({error}); "
                    "make room on the disk and start again: it goes on from there"
                ) from error

    def __enter__(self) -> "LMDBWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self._close()


def _first_missing(txn: lmdb.Transaction, kind: Kind, length: int) -> int:
    """Samples are written in order, so the first one that is not there is found by bisection."""
    low, high = 0, length
    while low < high:
        middle = (low + high) // 2
        if txn.get(b"z-%d" % middle if kind == "z" else b"y-%d-0" % middle) is None:
            high = middle
        else:
            low = middle + 1
    return low


def _count_all(txn: lmdb.Transaction, kind: Kind, done: int) -> list[int]:
    """How many embeddings each sample has that is there."""
    return [_count(txn, i) for i in range(done)] if kind == "y" else []


def _count(txn: lmdb.Transaction, sample: int) -> int:
    return next(j for j in itertools.count() if txn.get(b"y-%d-%d" % (sample, j)) is None)


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:12]}…"


@dataclass(frozen=True)
class LMDBInfo:
    """What a complete database holds."""

    kind: Kind
    length: int  # samples
    n_features: int  # embeddings that every sample has at least; 1 for latents
    counts: np.ndarray  # (length,) embeddings of each sample; 1 for latents
    shape: tuple[int, ...]  # of one latent (C, H, W) or one embedding (D,)
    meta: Mapping[str, Any]  # empty for databases in the plain published layout
    labels: np.ndarray | None = None  # (length,) int64 classes, where they stand in it


def read_info(path: str | Path, channels: int = 4) -> LMDBInfo:
    """Raises a UserError if there is no database at `path`, or an incomplete or damaged one."""
    return LMDBReader(path, channels).info


class LMDBReader:
    """Reads batches by index; `info` tells what is there.

    `channels` is needed only for latents without `meta`, whose shape is not recorded: such latents
    are square. They are moments, of twice as many channels, where class labels stand beside them.
    """

    def __init__(self, path: str | Path, channels: int = 4) -> None:
        self.path = Path(path)
        self._env = open_database(self.path)
        with self._env.begin() as txn:
            self.info = self._read_info(txn, channels)
        # Row of a sample's first embedding, when all embeddings stand below each other.
        self._first_row = np.cumsum(self.info.counts) - self.info.counts
        self._table: torch.Tensor | None = None

    def _read_info(self, txn: lmdb.Transaction, channels: int) -> LMDBInfo:
        meta = json.loads(txn.get(b"meta") or "{}")
        length = txn.get(b"length")
        kind: Kind = "z" if txn.get(b"z-0") is not None else "y"
        starts = {key: txn.get(key.replace(b"%d", b"0")) for key in (Z_KEY, Y_KEY, FEATURE_KEY)}
        self._key, first = next((item for item in starts.items() if item[1]), (Z_KEY, None))
        if length is None:
            total = meta.get("total", 0)
            raise UserError(
                f"{self.path}: incomplete database ({_first_missing(txn, kind, total)} of {total} "
                "samples); start the script that makes it again: it goes on from there"
            )
        if first is None:
            raise UserError(f"{self.path}: holds neither latents (z-0) nor embeddings (y-0-0)")
        length, floats = stored_length(length), len(first) // 4
        labels = read_labels(txn, length, self.path)
        length = length if labels is None else len(labels)
        n_features = 1
        if self._key == Y_KEY:
            stored = txn.get(b"n_features")
            n_features = int.from_bytes(stored, "big") if stored else _count(txn, 0)
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
    def nbytes(self) -> int:
        """Size of all samples in memory."""
        return int(self.info.counts.sum() * np.prod(self.info.shape) * 4)

    def load(self) -> None:
        """Read everything into one array; later reads come from there."""
        if self._table is None:
            rows = int(self.info.counts.sum())
            table = np.empty((rows, *self.info.shape), np.float32)
            samples = np.repeat(np.arange(self.info.length), self.info.counts)
            features = np.arange(rows) - self._first_row[samples]
            for start in range(0, rows, CHUNK):
                part = slice(start, start + CHUNK)
                table[part] = self.read(samples[part], features[part])
            self._table = torch.from_numpy(table)

    def read(
        self, indices: Sequence[int] | np.ndarray, feature: int | Sequence[int] | np.ndarray = 0
    ) -> np.ndarray:
        """Samples as (B, C, H, W) latents or (B, D) embeddings, float32, in one transaction.

        `feature` chooses among a sample's embeddings, one number for all or one for each.
        """
        indices = np.asarray(indices)
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
            joined = bytearray().join(values)  # the one copy; frombuffer makes a view of it
            size = 4 * int(np.prod(self.info.shape))
            if damaged := [k for k, v in zip(keys, values, strict=True) if len(v) != size]:
                raise UserError(
                    f"{self.path}: {damaged[0].decode()} is missing or damaged; delete the "
                    "database and make it again"
                )
        return np.frombuffer(joined, np.float32).reshape(-1, *self.info.shape)

    def all_samples(self, first: int = 0) -> Iterator[list[np.ndarray]]:
        """Every sample from `first` on, in batches as LMDBWriter.append takes them.

        Samples of one value are views of the database: they are gone when the next batch comes.
        """
        for start in range(first, self.info.length, CHUNK):
            samples = range(start, min(start + CHUNK, self.info.length))
            with self._env.begin(buffers=True) as txn:
                if self.info.kind == "z":
                    yield [self._view(txn, Z_KEY % i) for i in samples]
                    continue
                rows = [[Y_KEY % (i, j) for j in range(self.info.counts[i])] for i in samples]
                views = [[self._view(txn, key) for key in row] for row in rows]
                yield [row[0][None] if len(row) == 1 else np.stack(row) for row in views]

    def _view(self, txn: lmdb.Transaction, key: bytes) -> np.ndarray:
        return np.frombuffer(txn.get(key), "<f4").reshape(self.info.shape)


def is_complete(path: Path) -> bool:
    """Whether there is a database that has all its samples."""
    return _open_complete(path) is not None


def _open_complete(path: Path) -> lmdb.Environment | None:
    if not (path / "data.mdb").is_file():
        return None
    try:
        environment = open_database(path)
    except UserError:  # damaged, or being written
        return None
    with environment.begin() as txn:
        return environment if txn.get(b"length") is not None else None


def expect_kind(reader: LMDBReader, kind: Kind) -> None:
    """Raise UserError if a database holds latents where embeddings are expected, or vice versa."""
    if reader.info.kind != kind:
        names = {"z": "latents", "y": "embeddings"}
        raise UserError(
            f"{reader.path}: holds {names[reader.info.kind]} where {names[kind]} are expected"
        )


def check_same_samples(z: LMDBReader, y: LMDBReader) -> None:
    """Raise UserError unless lengths are equal, and names and labels where both state them."""
    if z.info.length != y.info.length:
        raise UserError(
            f"{z.path} holds {z.info.length} samples but {y.path} holds {y.info.length}; "
            "make both from the same image folder"
        )
    labels = [reader.info.labels for reader in (z, y)]
    if not any(own is None for own in labels) and not np.array_equal(*labels):
        raise UserError(f"{z.path} and {y.path} hold different class labels for the same images")
    hashes = [reader.info.meta.get("names_hash") for reader in (z, y)]
    if None not in hashes and hashes[0] != hashes[1]:
        pairs = zip(*(reader.info.meta.get("names", []) for reader in (z, y)), strict=False)
        first = next(((i, a, b) for i, (a, b) in enumerate(pairs) if a != b), None)
        where = "" if first is None else " (sample {}: {} and {})".format(*first)
        raise UserError(
            f"{z.path} and {y.path} were made from different images{where}; "
            "make both from the same image folder"
        )
