"""The part of a download that has arrived, kept beside the target until it is whole."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from utils.base.errors import UserError
from utils.base.locks import FileLock


@dataclass(frozen=True)
class Origin:
    """The source of a partial file's bytes."""

    address: str  # SHA-256 of the URL, which may hold a password
    validator: str | None  # ETag or date that the server gave for the file
    total: int | None  # bytes that the server announced


class PartialFile:
    """`.<name>.part` beside the target; `.<name>.part.json` beside it records the origin.

    A lock, `.<name>.part.lock`, keeps other processes from fetching the target meanwhile.
    """

    def __init__(self, target: Path) -> None:
        """Take the lock and open the partial file.

        Raises a UserError if another process is fetching the target, or if the folder cannot be
        written to.
        """
        self.target = target
        self.path = target.with_name(f".{target.name}.part")
        self.about = target.with_name(f".{target.name}.part.json")
        lock = target.with_name(f".{target.name}.part.lock")
        with contextlib.ExitStack() as opened:
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
                opened.enter_context(FileLock(lock, f"{target}: is being fetched"))
                self.file = opened.enter_context(open(self.path, "a+b"))
            except OSError as fault:
                raise UserError(f"{target}: cannot be written ({fault.strerror})") from fault
            self._opened = opened.pop_all()

    def __enter__(self) -> PartialFile:
        return self

    def __exit__(self, *_: object) -> None:
        if self.size == 0:
            self.path.unlink(missing_ok=True)
            self.about.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # a full disk was reported when writing
            self._opened.close()

    @property
    def size(self) -> int:
        """Return the number of bytes that have arrived."""
        return os.fstat(self.file.fileno()).st_size

    @property
    def origin(self) -> Origin | None:
        """Return the source of the bytes, or None if it is not known."""
        try:
            return Origin(**json.loads(self.about.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None

    def begin(self, origin: Origin, keep: int) -> None:
        """Keep the first `keep` bytes; what is written next comes from `origin`."""
        self.file.truncate(keep)
        self.about.write_text(json.dumps(asdict(origin)), encoding="utf-8")

    def discard(self) -> None:
        """Drop everything that has arrived."""
        self.file.truncate(0)
        self.about.unlink(missing_ok=True)

    def sha256(self) -> str:
        """Return the hexadecimal checksum of what has arrived."""
        self.file.flush()
        self.file.seek(0)
        return hashlib.file_digest(self.file, "sha256").hexdigest()

    def finish(self) -> None:
        """Bring the file to disk, then give it the target's name."""
        self.file.flush()
        os.fsync(self.file.fileno())
        os.replace(self.path, self.target)
        self.about.unlink(missing_ok=True)
