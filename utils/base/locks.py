"""A folder that one process at a time writes to: a lock file that names its owner."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
from pathlib import Path
from typing import IO

from utils.base.errors import UserError, note

LOCK_NAME = "writer.lock"
NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)  # of a file system


class FolderLock:
    """Held while a process writes to a folder; tells others which process that is.

    The kernel keeps the lock (flock) and drops it when the process ends, however it ends, so that a
    file left behind is known to be stale. A file system without such locks goes by the host and
    process number in the file. Use as a context manager, or call `release()`.
    """

    def __init__(self, folder: Path, what: str) -> None:
        """`what` the folder is, for messages, e.g. 'database'.

        Raises a UserError that names the owner if it is held; OSError if it cannot be written.
        """
        self.path = folder / LOCK_NAME
        while True:
            self._file = open(self.path, "a+", encoding="utf-8")  # noqa: SIM115
            if not _take(self._file, self.path, fcntl.LOCK_EX):
                self._file.close()
                raise UserError(
                    f"{folder}: this {what} is being written by {_owner(self.path)}; wait for it, "
                    "or stop it and start again"
                )
            if _is_still_there(self._file, self.path):
                break
            self._file.close()  # its last owner removed it just now
        if self.path.stat().st_size:
            note(f"{self.path}: left behind by {_owner(self.path)}, which has ended; taken over")
        self._file.truncate(0)
        json.dump({"host": socket.gethostname(), "pid": os.getpid()}, self._file)
        self._file.flush()

    def release(self) -> None:
        """Let others write; may be called twice."""
        if not self._file.closed:
            with contextlib.suppress(FileNotFoundError):  # the folder may have been deleted
                self.path.unlink()
            self._file.close()

    def __enter__(self) -> FolderLock:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def writer_of(folder: Path) -> str | None:
    """`process 123 on host x` that holds a folder's lock, or None if none does."""
    path = folder / LOCK_NAME
    try:
        with open(path, encoding="utf-8") as file:
            is_free = _take(file, path, fcntl.LOCK_SH)
    except FileNotFoundError:
        return None
    return None if is_free else _owner(path)


def _take(file: IO[str], path: Path, how: int) -> bool:
    try:
        fcntl.flock(file, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        return not _lives(_read(path))
    return True


def _is_still_there(file: IO[str], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _read(path: Path) -> dict[str, str | int]:
    try:
        owner = json.loads(path.read_text(encoding="utf-8"))
        return {"host": str(owner["host"]), "pid": int(owner["pid"])}
    except (OSError, ValueError, LookupError, TypeError):
        return {}


def _owner(path: Path) -> str:
    owner = _read(path)
    return f"process {owner['pid']} on host {owner['host']}" if owner else "another process"


def _lives(owner: dict[str, str | int]) -> bool:
    """Whether a process may still be there; of another host's that is not known."""
    if not owner or owner["host"] != socket.gethostname():
        return bool(owner)
    try:
        os.kill(owner["pid"], 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        return True
    return True
