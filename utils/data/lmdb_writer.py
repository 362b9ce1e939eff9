"""Write databases of latents and embeddings; lmdb_layout.py describes their layout."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lmdb
import numpy as np

from utils.base.errors import UserError
from utils.base.finite import OVERFLOW, require_finite
from utils.base.locks import FolderLock
from utils.data.file_names import nfc
from utils.data.lmdb_layout import (
    DatabaseKind,
    check_whole,
    count_embeddings,
    first_key,
    first_missing,
    same_names,
    stored_dtype,
)
from utils.data.lmdb_reader import open_if_complete
from utils.data.source_files import SEEN_IN_CONTENT, content_hash, read_records, write_records


class LMDBWriter:
    """A writer that appends samples in order and goes on where an earlier run was cut off.

    `done` is the index of the next sample to append. `complete` is True once all samples are
    written. Use the writer as a context manager.
    """

    def __init__(
        self, path: str | Path, kind: DatabaseKind, meta: Mapping[str, Any], length: int
    ) -> None:
        """Open a database to append to; a complete one is opened for reading.

        `meta` identifies source and encoder by plain JSON values; `length` is the number of samples
        in the complete database. Raises a UserError if a database is there already that was made
        differently or is damaged, if the folder cannot be written to, or if another process is
        writing to it.
        """
        self.path, self.kind, self.length = Path(path), kind, length
        self._meta = json.loads(json.dumps({**meta, "total": length}))
        self._has_appended = False
        self._lock: FolderLock | None = None
        env: lmdb.Environment | None = None
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            env = open_if_complete(self.path)
            if env is None:
                self._lock = FolderLock(self.path, "database")
                # LMDB would map its own lock file: a full disk would end the process (SIGBUS).
                env = lmdb.open(os.fsencode(self.path), map_size=1 << 26, lock=False)
                check_whole(self.path, env)
            self._env = env
            self._resume()
        except (OSError, lmdb.Error) as error:
            self._close(env)
            raise UserError(f"{self.path}: cannot be written as a database ({error})") from error
        except BaseException:
            self._close(env)
            raise

    def _close(self, env: lmdb.Environment | None) -> None:
        """Close the database and release the lock, unless the database is only read."""
        if self._lock is not None:  # without a lock, readers use the environment too
            if env is not None:
                env.close()
            self._lock.release()

    def _resume(self) -> None:
        """Find the first sample to write; raise a UserError if others were made differently."""
        with self._env.begin() as txn:
            stored = json.loads(txn.get(b"meta") or "null")
            if stored is None and txn.stat()["entries"]:
                raise UserError(
                    f"{self.path}: a database of unknown origin is there already; "
                    "delete it or choose another --out"
                )
            self.done = first_missing(txn, self.kind, self.length)
            self.complete = txn.get(b"length") is not None
            # Samples that are not written yet may have changed; the written ones may not.
            may_change = {"names"}
            if content_hash(read_records(self.path)[: self.done]):
                may_change |= SEEN_IN_CONTENT
            if stored and same_names(stored, self._meta):  # on macOS they have another form
                may_change |= {"names_hash"}
            if not self.complete and stored and self._same_so_far(stored):
                may_change |= {"names_hash", "total"}
            different = [
                _difference(key, stored, self._meta)
                for key, value in self._meta.items()
                if stored is not None and stored.get(key) != value and key not in may_change
            ]
            if different:
                raise UserError(
                    f"{self.path}: made differently before ({'; '.join(different)}); "
                    "delete it or choose another --out"
                )
            self._meta = {**(stored or {}), **self._meta}
            counted = 0 if self.complete or self.kind != "y" else self.done
            self._counts = [count_embeddings(txn, i) for i in range(counted)]

    def _same_so_far(self, stored: Mapping[str, Any]) -> bool:
        """Return True if the samples that are written have the names that they have now."""
        both = [meta.get("names", [])[: self.done] for meta in (stored, self._meta)]
        names = [[nfc(name) for name in some] for some in both]
        return len(names[0]) == self.done < self.length and names[0] == names[1]

    def append(
        self, samples: np.ndarray | Sequence[np.ndarray], records: np.ndarray | None = None
    ) -> None:
        """Write the next samples in one transaction: all of them or none.

        `samples`: (B, C, H, W) latents or patch features; or the embeddings of B images, each
        (n, D), n >= 1.
        `records`: (B,) of the files that they were made from, see source_files.py.
        Raises a UserError if the disk is full, or a sample holds NaN or infinite numbers; samples
        written before are kept.
        """
        dtype = stored_dtype(self.kind)
        arrays = [np.ascontiguousarray(sample, dtype) for sample in samples]
        names = self._meta.get("names", [])
        named = {
            f"sample {i} ({names[i]})" if i < len(names) else f"sample {i}": array
            for i, array in enumerate(arrays, self.done)
        }
        require_finite(named, self.path, OVERFLOW)
        if not arrays or self.done + len(arrays) > self.length:
            raise ValueError(f"{len(arrays)} samples after {self.done} of {self.length}")
        shape = list(arrays[0].shape[1:] if self.kind == "y" else arrays[0].shape)
        items: list[tuple[bytes, Any]] = []
        if not self._has_appended:
            self._meta = {"shape": shape, "dtype": dtype.name} | self._meta
            items.append((b"meta", json.dumps(self._meta).encode()))
        if shape != self._meta["shape"]:
            raise ValueError(f"samples of shape {shape} after samples of {self._meta['shape']}")
        if self.kind != "y":
            items += [(first_key(self.kind, i), x.data) for i, x in enumerate(arrays, self.done)]
        else:
            numbered = [
                (i, j, y) for i, ys in enumerate(arrays, self.done) for j, y in enumerate(ys)
            ]
            items += [(b"y-%d-%d" % (i, j), y.data) for i, j, y in numbered]
        if records is not None:  # before the samples: each of these then has its record
            try:
                write_records(self.path, records, self.done)
            except OSError as error:
                raise self._no_room(error) from error
        counts = self._counts + [len(ys) for ys in arrays if self.kind == "y"]
        if self.done + len(arrays) == self.length:
            items += self._last_items(counts)
        self._commit(items)
        self.done += len(arrays)
        self._counts, self._has_appended = counts, True
        self.complete = self.done == self.length

    def _last_items(self, counts: list[int]) -> list[tuple[bytes, bytes]]:
        """Return the keys and values that make the database complete."""
        items, meta = [], dict(self._meta)
        if self.kind == "y":
            items.append((b"n_features", min(counts).to_bytes(8, "big")))
            if min(counts) != max(counts):
                meta["counts"] = counts
        if (hashed := content_hash(read_records(self.path)[: self.length])) is not None:
            meta["content_hash"] = hashed
        if meta != self._meta:
            items.append((b"meta", json.dumps(meta).encode()))
        return [*items, (b"length", self.length.to_bytes(8, "big"))]

    def _no_room(self, error: Exception) -> UserError:
        return UserError(
            f"{self.path}: cannot write sample {self.done} of {self.length} ({error}); "
            "make room on the disk and start again: it goes on from there"
        )

    def _commit(self, items: list[tuple[bytes, Any]]) -> None:
        """Write keys and values in one transaction; grow the database's map if it is full."""
        while True:
            try:
                with self._env.begin(write=True) as txn:
                    for key, value in items:
                        txn.put(key, value)
                return
            except lmdb.MapFullError:
                self._env.set_mapsize(2 * self._env.info()["map_size"])
            except lmdb.Error as error:
                raise self._no_room(error) from error

    def __enter__(self) -> LMDBWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._close(self._env)


def _difference(key: str, there: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Say how an entry of `meta` differs; of names, which were added and removed."""
    if key == "names_hash" and there.get("names") and now.get("names"):
        before, after = there["names"], now["names"]
        added, removed = set(after).difference(before), set(before).difference(after)
        changes = [
            f"{len(names)} {what}, the first is {next(name for name in order if name in names)}"
            for names, what, order in ((added, "added", after), (removed, "removed", before))
            if names
        ]
        return f"images: {', '.join(changes) or 'other order'}"
    texts = [str(meta.get(key)) for meta in (there, now)]
    before, after = (text if len(text) <= 40 else f"{text[:12]}…" for text in texts)
    return f"{key} {before} there, {after} now"
