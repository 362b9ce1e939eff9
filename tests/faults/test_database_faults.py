"""Databases on a full file system and in a read-only folder."""

import subprocess
from pathlib import Path

import numpy as np
import pytest
from harness import fill_disk, small_disk

from utils.base.errors import UserError
from utils.data.lmdb_reader import LMDBReader
from utils.data.lmdb_writer import LMDBWriter

Z = np.random.default_rng(0).standard_normal((50, 4, 64, 64), np.float32)  # 3.3 MB


@pytest.fixture
def disk(tmp_path):
    """Mount a file system of 4 MB."""
    with small_disk(tmp_path / "disk", 4 << 20) as folder:
        yield folder


def fill(path: Path, count: int = len(Z)) -> int:
    """Write the missing samples of a database; return the number of those already there."""
    with LMDBWriter(path, "z", {}, count) as writer:
        there = writer.done
        for start in range(there, count, 2):
            writer.append(Z[start : min(start + 2, count)])
    return there


def test_a_full_file_system_keeps_what_was_written(disk):
    filler = fill_disk(disk, leave=2 << 20)
    with pytest.raises(UserError, match=r"sample \d+ of 50 .*make room on the disk"):
        fill(disk / "z")
    filler.unlink()
    assert 20 < fill(disk / "z") < 50
    np.testing.assert_array_equal(LMDBReader(disk / "z").read(range(50)), Z)


def test_a_file_system_without_any_room_is_one_line(disk):
    fill_disk(disk)
    with pytest.raises(UserError, match=r"/z: cannot be written as a database .*No space left"):
        fill(disk / "z")


def test_a_read_only_folder_is_read_and_says_so_when_written(disk):
    fill(disk / "z", 5)
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    np.testing.assert_array_equal(LMDBReader(disk / "z").read(range(5)), Z[:5])
    assert fill(disk / "z", 5) == 5
    with pytest.raises(UserError, match=r"/new: cannot be written as a database .*Read-only"):
        fill(disk / "new", 5)
