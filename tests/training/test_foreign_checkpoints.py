"""Files that people and sync tools put among checkpoints neither count nor get lost."""

from pathlib import Path

import pytest
import torch

from utils.pretrained.checkpoint_files import foreign_files, load_checkpoint, step_of
from utils.training.checkpoint import (
    discard_leftovers,
    latest_checkpoint,
    list_checkpoints,
    remove_old,
    save_checkpoint,
)


def write(path: Path, step: int) -> Path:
    """Write a small checkpoint of a step under any name."""
    weights = {"w": torch.full((2,), float(step))}
    path.parent.mkdir(exist_ok=True)
    torch.save({"model": weights, "ema": weights, "step": step, "version": 1}, path)
    return path


@pytest.fixture
def folder(tmp_path) -> Path:
    """Return a folder with the checkpoints of steps 2 and 4."""
    for step in (2, 4):
        write(tmp_path / "checkpoints" / f"{step:07d}.pt", step)
    return tmp_path / "checkpoints"


FOREIGN = {
    "best.pt": lambda path: write(path, 4),
    "0000004 (1).pt": lambda path: write(path, 2),
    "0000009 (conflicted copy).pt": lambda path: write(path, 2),
    "0000009.pt": lambda path: write(path, 2),
    "4.pt": lambda path: write(path, 4),
    "00000000030.pt": lambda path: write(path, 30),
    "._0000020.pt": lambda path: write(path, 20),
    "\u0660\u0660\u0660\u0660\u0660\u0660\u0669.pt": lambda path: write(
        path, 9
    ),  # digits to Python
    "0000010.pt": Path.mkdir,
    "0000040.pt": Path.touch,
    "0000050.pt": lambda path: path.symlink_to("gone.pt"),
    "0000060.pt": lambda path: path.symlink_to("0000004.pt"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_a_file_that_is_no_checkpoint_of_the_run_is_left_alone_and_named(folder, name):
    FOREIGN[name](folder / name)
    assert list(list_checkpoints(folder)) == [2, 4]
    assert latest_checkpoint(folder) == folder / "0000004.pt"
    assert f"left alone, as no checkpoints of this run: {name} (" in foreign_files(folder)
    discard_leftovers(folder, 4)
    remove_old(folder, keep_last=1)
    left = {path.name for path in folder.iterdir()}
    assert left == {"0000004.pt", name}


def test_a_folder_of_checkpoints_alone_needs_no_note(folder):
    assert foreign_files(folder) is None
    assert foreign_files(folder / "nothing") is None


@pytest.mark.parametrize("name", ["0000009.pt", "0000010.pt", "0000060.pt"])
def test_a_checkpoint_takes_its_place_and_what_was_there_keeps_its_content(folder, name):
    path, other = folder / name, folder / f"{name}.other"
    FOREIGN[name](path)
    before = path.lstat()
    save_checkpoint(path, {"model": {"w": torch.ones(2)}, "step": int(path.stem)})
    assert load_checkpoint(path)["step"] == int(path.stem)
    after = other.lstat()
    assert (after.st_ino, after.st_mode, after.st_size) == (
        before.st_ino,
        before.st_mode,
        before.st_size,
    )


def test_the_same_step_is_written_again_without_a_copy(folder):
    save_checkpoint(folder / "0000004.pt", load_checkpoint(folder / "0000004.pt"))
    assert sorted(path.name for path in folder.iterdir()) == ["0000002.pt", "0000004.pt"]


@pytest.mark.parametrize("name", ["0000007.pt", "best.pt", "model.pt"])
def test_the_step_in_a_file_counts_not_its_name(tmp_path, name):
    assert step_of(write(tmp_path / name, 3)) == 3


def test_unfinished_files_of_other_programs_stay(folder):
    ours, other = folder / ".0000006.pt.77.tmp", folder / ".syncthing.0000004.pt.tmp"
    for path in (ours, other):
        path.touch()
    discard_leftovers(folder, 4)
    assert (ours.exists(), other.exists()) == (False, True)
