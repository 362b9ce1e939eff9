"""Locks of files and folders (filelock), whose messages name the process that holds them.

The kernel keeps a lock (flock), and drops it when its process ends, however it ends: a file that is
left behind is known to be stale. Where there is no flock (Windows, some network file systems), a
marker file counts as long as the process that it names may run.
"""

from __future__ import annotations

import errno
import os
import socket
import tempfile
from pathlib import Path
from typing import NamedTuple, Self

import filelock
import psutil

from utils.base.errors import UserError, note

LOCK_NAME = "writer.lock"
NO_FLOCK = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)  # of a file system
NAMELESS_SECONDS = 5  # filelock removes a marker that names no process after 2


class Owner(NamedTuple):
    """The process that holds a lock."""

    pid: int
    host: str

    def __str__(self) -> str:
        return f"process {self.pid} on host {self.host}"


class FileLock:
    """A lock file, held until `release()`, the end of a `with` block, or of the process."""

    def __init__(self, path: Path, busy: str | None) -> None:
        """Take the lock at `path`.

        `busy` begins the message about a lock that another process holds, e.g. 'z: this database is
        being written'; None = wait until that process releases it. Raises a UserError that names
        the owner if the lock is held and `busy` is given. Raises OSError if the file cannot be
        written.
        """
        self.path, before = path, _read_owner(path)
        seconds = -1 if busy is None else 0
        self._lock: filelock.BaseFileLock
        with tempfile.TemporaryFile(dir=path.parent) as probe:
            has_flock = _take(probe.fileno()) is not None
        if has_flock:
            write = self._write_owner
            self._lock = filelock.FileLock(path, seconds, thread_local=False, on_acquired=write)
        else:
            seconds = NAMELESS_SECONDS if busy and path.exists() and not before else seconds
            self._lock = filelock.SoftFileLock(path, seconds, thread_local=False)
        while not self._lock.is_locked:
            try:
                self._lock.acquire()
            except filelock.Timeout:
                owner = _read_owner(path) or "another process"
                remedy = "wait for it, or stop it and start again"
                raise UserError(f"{busy} by {owner}; {remedy}") from None
            except FileNotFoundError:  # its last owner removed the file just now
                path.parent.stat()
        if before and busy:
            note(f"{path}: left behind by {before}, which has ended; taken over")

    def _write_owner(self, file: int) -> None:
        """Write this process into the locked file, in the form of filelock's markers."""
        if not os.path.samestat(os.fstat(file), self.path.stat()):
            raise FileNotFoundError(self.path)
        try:
            os.ftruncate(file, 0)
            os.write(file, f"{os.getpid()}\n{socket.gethostname()}\n".encode())
        except OSError:  # the disk is full
            self.path.unlink()
            raise

    def release(self) -> None:
        """Remove the file and let others take the lock; may be called twice."""
        if self._lock.is_locked and not isinstance(self._lock, filelock.SoftFileLock):
            self.path.unlink(missing_ok=True)
        self._lock.release()

    def __enter__(self) -> Self:
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
    owner = _read_owner(path)
    try:
        with open(path, "r+" if os.access(path, os.W_OK) else "r") as file:
            is_free = _take(file.fileno())
    except FileNotFoundError:
        return None
    if is_free is None:  # nothing is known about processes of other hosts
        is_here = owner is not None and owner.host == socket.gethostname()
        is_free = owner is None or (is_here and not psutil.pid_exists(owner.pid))
    return None if is_free else str(owner or "another process")


def _take(file: int) -> bool | None:
    """Take the lock of an open file: False = another process has it, None = no locks there."""
    try:
        return filelock.lock_descriptor(file, blocking=False) if filelock.has_fcntl else None
    except OSError as fault:
        if fault.errno not in NO_FLOCK:
            raise
        return None


def _read_owner(path: Path) -> Owner | None:
    """Return the owner that a lock file names; None if the file does not name one."""
    try:
        pid, host, *_ = path.read_text(encoding="utf-8").splitlines()
        return Owner(int(pid), host)
    except (OSError, ValueError):
        return None
