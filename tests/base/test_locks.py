"""Files that one process at a time may hold, and the lock of a folder."""

import errno
import fcntl
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import filelock
import pytest
from conftest import ROOT

from utils.base.errors import UserError
from utils.base.locks import LOCK_NAME, FileLock, FolderLock, writer_of

HOLD = (
    "import sys; from pathlib import Path; from utils.base.locks import FolderLock\n"
    "lock = FolderLock(Path(sys.argv[1]), 'database')\n"
    "print('held', flush=True); sys.stdin.read()\n"
)
# Fails if another process is inside at the same time.
IN_AND_OUT = (
    "import sys; from pathlib import Path; from utils.base.locks import FileLock\n"
    "folder = Path(sys.argv[1])\n"
    "for _ in range(200):\n"
    "    with FileLock(folder / 'x.lock', busy=None):\n"
    "        (folder / 'inside').mkdir()\n"
    "        (folder / 'inside').rmdir()\n"
)


@pytest.fixture
def holder(tmp_path):
    """A process that holds the lock of `tmp_path` until it is killed."""
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_second_writer_is_told_who_the_first_is(tmp_path, holder):
    owner = f"process {holder.pid} on host {socket.gethostname()}"
    with pytest.raises(UserError, match=f"{tmp_path}: this database is being written by {owner}"):
        FolderLock(tmp_path, "database")
    assert writer_of(tmp_path) == owner


def test_a_killed_owners_lock_is_stale_and_this_is_said(tmp_path, holder, capsys):
    holder.kill()
    holder.wait()
    assert writer_of(tmp_path) is None
    with FolderLock(tmp_path, "database"):
        said = capsys.readouterr().err
        assert f"left behind by process {holder.pid} on host" in said and "taken over" in said
        assert f"process {os.getpid()} " in writer_of(tmp_path)


def test_a_released_lock_leaves_nothing_behind(tmp_path, capsys):
    for _ in range(2):
        with FolderLock(tmp_path, "database"):
            assert writer_of(tmp_path)
        assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().err == ""


def test_a_lock_that_waits_is_had_when_its_owner_ends(tmp_path, holder):
    killer = threading.Timer(0.5, holder.kill)
    killer.start()
    with FileLock(tmp_path / LOCK_NAME, busy=None):
        assert holder.wait() != 0
        assert f"process {os.getpid()} " in writer_of(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_processes_that_wait_for_one_lock_hold_it_one_after_the_other(tmp_path):
    command = [sys.executable, "-c", IN_AND_OUT, str(tmp_path)]
    processes = [subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE) for _ in range(3)]
    assert [process.communicate()[1] for process in processes] == [b""] * 3
    assert [process.returncode for process in processes] == [0] * 3
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("has_flock", [True, False])
def test_a_lock_that_version_0_2_left_behind_does_no_harm(tmp_path, monkeypatch, has_flock):
    monkeypatch.setattr(filelock, "has_fcntl", has_flock)
    (tmp_path / LOCK_NAME).write_text('{"host": "another", "pid": 1}')
    assert writer_of(tmp_path) is None
    with FolderLock(tmp_path, "database"):
        assert f"process {os.getpid()} " in writer_of(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_without_lock_has_no_writer(tmp_path):
    assert writer_of(tmp_path) is None
    (tmp_path / LOCK_NAME).write_text("half a li")
    assert writer_of(tmp_path) is None


@pytest.mark.parametrize(
    ("host", "pid", "is_held"),
    [
        ("another", 1, True),
        (socket.gethostname(), os.getpid(), True),
        (socket.gethostname(), 2**22 + 1, False),  # above the highest number that Linux gives
    ],
    ids=["of another host", "alive", "dead"],
)
def test_a_file_system_without_locks_goes_by_host_and_process(
    tmp_path: Path, monkeypatch, host, pid, is_held
):
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    (tmp_path / LOCK_NAME).write_text(f"{pid}\n{host}\n")
    assert (writer_of(tmp_path) is not None) == is_held
    if is_held:
        with pytest.raises(UserError, match=f"process {pid} on host {host}"):
            FolderLock(tmp_path, "database")
    else:
        FolderLock(tmp_path, "database").release()
