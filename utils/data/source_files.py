"""The files that a database was made from: a record of each, in `files.bin` beside the numbers.

Names alone do not identify files: images are replaced under their old names. A record holds the
state of a file (its size and times) and the SHA-256 of its content. A file in the recorded state is
not read again. A file in another state counts as changed if its content differs, so a data set may
be moved, copied or touched.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from utils.base.files import write_whole
from utils.base.progress import progress
from utils.base.read_ahead import read_ahead
from utils.data.archive_files import archive_of, read_bytes

RECORDS = "files.bin"
# 8 bytes of the state's hash and 24 of the content's, for each sample; zeros = unknown.
RECORD = np.dtype([("state", "<u8"), ("digest", "<u8", (3,))])

# Entries of a database's `meta` that may change where the contents of all files are recorded.
SEEN_IN_CONTENT = {"source", "captions_hash"}


class SourceFiles:
    """The files of a data set as they are now, one for each sample, in order.

    `records`: (N,) RECORD of the files that were read, zeros for the others.
    `square`: (N,) fraction of an image's pixels in its middle square; zeros where none was read.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        what: str = "images",
        content: Callable[[Path], bytes] = read_bytes,
        threads: int = 2,
    ) -> None:
        """`content` reads what counts of a file; `what` names the files in messages."""
        self.paths, self.what, self._content, self._threads = paths, what, content, threads
        self.records = np.zeros(len(paths), RECORD)
        self.square = np.zeros(len(paths), np.float32)

    def __len__(self) -> int:
        return len(self.paths)

    def part(self, first: int, stop: int) -> SourceFiles:
        """Return the files from `first` up to `stop`, with the same records."""
        part = SourceFiles(self.paths[first:stop], self.what, self._content, self._threads)
        part.records, part.square = self.records[first:stop], self.square[first:stop]  # views
        return part

    def read(self, index: int) -> bytes | None:
        """Return a file's content and record it; return None if it cannot be read."""
        try:
            state = state_of(self.paths[index])  # first: a later change gives another state
            content = self._content(self.paths[index])
        except OSError:
            return None
        self.records[index] = state, _digest(content)
        return content

    def cropped(self) -> str:
        """Return a line about the images that were read and are not square; "" if all are."""
        read = self.square[self.square > 0]
        oblong = read[read < 0.99]  # JPEG's decoder may round the sides of a draft
        if not len(oblong):
            return ""
        return (
            f"{len(oblong)} of {len(read)} {self.what} are not square: the middle square is kept, "
            f"{np.median(oblong):.0%} of the pixels (median; docs/adapting.md)"
        )

    def compare(self, there: np.ndarray) -> tuple[list[int], np.ndarray]:
        """Return the indices of the first len(`there`) files whose content is not the recorded one.

        Also returns the records with the files' present states. Files that have no record pass.
        """
        renewed = there.copy()
        known = there["digest"].any(axis=1)
        states = [_state_or_zero(path) for path in self.paths[: len(there)]]
        suspects = np.flatnonzero(known & (there["state"] != np.array(states, "<u8"))).tolist()
        if suspects:
            now = read_ahead(self._record, suspects, self._threads, 8 * self._threads)
            bar = progress(now, f"compare {self.what}", len(suspects), "file")
            renewed[suspects] = list(bar)
        changed = [i for i in suspects if (renewed[i]["digest"] != there[i]["digest"]).any()]
        return changed, renewed

    def stale(self, made: Sequence[Path], changed: Sequence[int]) -> str:
        """Return the line that refuses to go on with what was `made` of files that `changed`."""
        paths = list(map(str, made))
        delete = shlex.join(["rm", "-r", *paths])
        return (
            f"{' and '.join(paths)}: {len(changed)} of {len(self)} {self.what} have changed since "
            f"they were encoded, the first is {self.paths[changed[0]]}; delete what was made from "
            f"them ({delete}) and start again, or choose another --out"
        )

    def _record(self, index: int) -> np.void:
        if not self.records[index]["state"]:
            self.read(index)
        record: np.void = self.records[index]
        return record


def state_of(path: Path) -> int:
    """Return a hash of the size and times of a file, or of its archive; OSError if it is missing.

    The time of the last change (ctime) is among them: nobody sets it, while copies may keep mtime.
    """
    state = (archive_of(path) or path).stat()
    text = f"{state.st_size} {state.st_mtime_ns} {state.st_ctime_ns}"
    return int(_digest(text.encode())[0])


def _state_or_zero(path: Path) -> int:
    try:
        return state_of(path)
    except OSError:
        return 0


def _digest(content: bytes) -> np.ndarray:
    return np.frombuffer(hashlib.sha256(content).digest()[:24], "<u8")


def read_records(folder: Path) -> np.ndarray:
    """Return the records of the database in `folder`, (N,); empty if it holds none."""
    with contextlib.suppress(FileNotFoundError):
        return np.fromfile(folder / RECORDS, RECORD)
    return np.zeros(0, RECORD)


def write_records(folder: Path, records: np.ndarray, first: int) -> None:
    """Write the records of the samples from `first` on to disk; they end the file."""
    file = os.open(folder / RECORDS, os.O_WRONLY | os.O_CREAT, 0o666)
    with open(file, "wb") as opened:
        opened.truncate(first * RECORD.itemsize)  # lengthens it with zeros if older ones lack
        opened.seek(first * RECORD.itemsize)
        opened.write(records.tobytes())
        opened.flush()
        os.fsync(opened.fileno())


def renew_records(folder: Path, records: np.ndarray) -> None:
    """Replace the records of a database, unless its folder is read-only."""
    with contextlib.suppress(OSError):
        write_whole(folder / RECORDS, lambda temporary: temporary.write_bytes(records.tobytes()))


def content_hash(records: np.ndarray) -> str | None:
    """Return an identity of all contents and their order; None if one of them is unknown."""
    if not len(records) or not records["digest"].any(axis=1).all():
        return None
    return hashlib.sha256(np.ascontiguousarray(records["digest"]).tobytes()).hexdigest()


def as_bytes(records: np.ndarray) -> np.ndarray:
    """Return records as plain numbers, (N, 32) uint8."""
    return np.ascontiguousarray(records).view(np.uint8).reshape(len(records), -1)


def from_bytes(numbers: np.ndarray) -> np.ndarray:
    """Return the records (N,) that `as_bytes` gave as (N, 32) uint8."""
    return np.ascontiguousarray(numbers).view(RECORD).reshape(-1)
