"""Files that one process at a time may hold: each names its owner."""

from __future__ import annotations

import contextlib
import errno
import importlib
import json
import os
import socket
import time
from pathlib import Path
from typing import IO, Any, NamedTuple

import psutil

from utils.base.errors import UserError, note

try:
    fcntl: Any = importlib.import_module("fcntl")
except ImportError:  # Windows has no flock
    fcntl = None
LOCK_NAME = "writer.lock"
POLL = 0.5  # seconds between two looks at a lock that the kernel does not keep
NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)  # of a file system


class Owner(NamedTuple):
    """The process that holds a lock."""

    host: str
    pid: int


class FileLock:
    """A lock file, held until `release()` or the end of the process.

    The kernel keeps the lock (flock). It drops the lock when the process ends, however it ends:
    a file that is left behind is known to be stale. Without flock (Windows, some file systems), the
    owner that the file names has to be alive. Use the lock as a context manager, or call
    `release()`.
    """

    def __init__(self, path: Path, busy: str | None) -> None:
        """Take the lock at `path`.

        `busy` begins the message about a lock that another process holds, e.g. 'z: this database is
        being written'; None = wait until that process releases it. Raises a UserError that names
        the owner if the lock is held and `busy` is given. Raises OSError if the file cannot be
        written.
        """
        self.path = path
        while True:
            self._file = open(path, "a+", encoding="utf-8")  # noqa: SIM115
            if _take(self._file, path, shared=False, wait=busy is None):
                if _is_still_there(self._file, path):
                    break  # else its last owner removed the file just now
            elif busy is None:
                time.sleep(POLL)
            else:
                self._file.close()
                raise UserError(
                    f"{busy} by {_owner_name(path)}; wait for it, or stop it and start again"
                )
            self._file.close()
        if path.stat().st_size:
            note(f"{path}: left behind by {_owner_name(path)}, which has ended; taken over")
        try:
            self._file.truncate(0)
            json.dump(Owner(socket.gethostname(), os.getpid())._asdict(), self._file)
            self._file.flush()
        except OSError:  # the disk is full
            self.release()
            raise

    def release(self) -> None:
        """Remove the file and let others take the lock; may be called twice."""
        if self._file.closed:
            return
        # The kernel's lock ends when the file is closed; Windows removes closed files only.
        for step in (self._unlink, self._close) if fcntl else (self._close, self._unlink):
            step()

    def _unlink(self) -> None:
        with contextlib.suppress(FileNotFoundError):  # the folder may have been deleted
            self.path.unlink()

    def _close(self) -> None:
        with contextlib.suppress(OSError):  # a full disk was reported before
            self._file.close()

    def __enter__(self) -> FileLock:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


class FolderLock(FileLock):
    """The lock of a folder that one process at a time may write to: its `writer.lock`."""

    def __init__(self, folder: Path, what: str) -> None:
        """Take the lock of a folder; `what` names the folder in messages, e.g. 'database'.

        Raises a UserError that names the owner if the lock is held, and OSError if the folder
        cannot be written to.
        """
        super().__init__(folder / LOCK_NAME, f"{folder}: this {what} is being written")


def writer_of(folder: Path) -> str | None:
    """Return `process 123 on host x` if that process holds the folder's lock, else None."""
    path = folder / LOCK_NAME
    try:
        with open(path, encoding="utf-8") as file:
            is_free = _take(file, path, shared=True, wait=False)
    except FileNotFoundError:
        return None
    return None if is_free else _owner_name(path)


def _take(file: IO[str], path: Path, *, shared: bool, wait: bool) -> bool:
    """Take a lock of the kernel's; return False if another process holds it.

    With `wait`, False comes only from a file system or a system without flock.
    """
    if fcntl is None:
        return _has_no_owner(path)
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    try:
        fcntl.flock(file, kind if wait else kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        return _has_no_owner(path)
    return True


def _has_no_owner(path: Path) -> bool:
    """Return True if a lock file names no process that may still run."""
    owner = _read_owner(path)
    return owner is None or not _may_live(owner)


def _is_still_there(file: IO[str], path: Path) -> bool:
    """Return True if `path` still names the open file."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _read_owner(path: Path) -> Owner | None:
    """Return the owner that a lock file names; None if the file does not name one."""
    try:
        owner = json.loads(path.read_text(encoding="utf-8"))
        return Owner(str(owner["host"]), int(owner["pid"]))
    except (OSError, ValueError, LookupError, TypeError):
        return None


def _owner_name(path: Path) -> str:
    owner = _read_owner(path)
    return f"process {owner.pid} on host {owner.host}" if owner else "another process"


def _may_live(owner: Owner) -> bool:
    """Return True if a process may still run; nothing is known about those of other hosts."""
    return owner.host != socket.gethostname() or psutil.pid_exists(owner.pid)
