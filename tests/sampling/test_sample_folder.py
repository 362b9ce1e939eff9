"""A folder of samples holds one run."""

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny import make_tiny_release

import t2f
from utils.base.errors import UserError
from utils.sampling.image_files import save_png
from utils.sampling.sample_folder import other_runs_fault, single_images


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """Make a released model with the tiny encoders; return its file."""
    return make_tiny_release(tmp_path_factory.mktemp("released"))


@pytest.fixture
def run(checkpoint, tmp_path, monkeypatch):
    """Return a function that runs t2f.py in an empty folder; it returns the exit code."""

    def call(*flags: object) -> int:
        given = ["--ckpt", checkpoint, "--device", "cpu", "--num_steps", 2, *flags]
        monkeypatch.setattr(sys, "argv", ["t2f.py", *map(str, given)])
        monkeypatch.chdir(tmp_path)
        try:
            t2f.main()
        except SystemExit as stop:
            return int(stop.code)
        return 0

    return call


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


FIRST = ("--prompt", "red hair", "--num", 2, "--out", "x")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--prompt", "blue hair", "--num", 2), "00_000.png, whose prompt is 'red hair', here"),
        ((*FIRST[:4], "--cfg_scale", 4), "00_000.png, whose cfg_scale is '2.0', here '4.0'"),
        ((*FIRST[:4], "--freedom", 0, "--solver", "euler"), "00_000.png, whose solver is"),
        (("--prompt", "red hair", "--num", 1), "00_001.png, which this run does not make"),
        (("--prompt", "red hair", "--num", 2, "--seed", 1), "00_000.png, which this run does not"),
    ],
)
def test_another_run_is_not_mixed_into_a_folder(run, tmp_path, capsys, flags, said):
    assert run(*FIRST) == 0
    before = contents(tmp_path / "x")
    capsys.readouterr()
    assert run(*flags, "--out", "x") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: x: holds images of another run ({said}")
    assert contents(tmp_path / "x") == before


def test_the_same_command_and_more_seeds_go_on_in_the_folder(run, tmp_path):
    assert run(*FIRST) == 0
    before = contents(tmp_path / "x")
    assert run(*FIRST) == 0
    assert contents(tmp_path / "x") == before
    (tmp_path / "x" / "00_001.png").unlink()
    assert run(*FIRST, "--num", 3) == 0
    assert {"00_001.png", "00_002.png"} < set(contents(tmp_path / "x"))


@pytest.mark.parametrize("prompt", ["red-hair!", "Red  Hair", "red\thair"])
def test_prompts_of_one_slug_have_folders_of_their_own(run, tmp_path, prompt):
    for text in ("red hair", prompt, prompt):
        assert run("--prompt", text, "--num", 1) == 0
    assert sorted(path.name for path in (tmp_path / "samples").iterdir()) == [
        "red-hair",
        "red-hair-2",
    ]
    with Image.open(tmp_path / "samples" / "red-hair" / "00_000.png") as image:
        assert image.text["prompt"] == "red hair"


def test_a_grid_whose_images_were_moved_is_not_overwritten(run, tmp_path):
    assert run(*FIRST) == 0
    for path in (tmp_path / "x").glob("0*.png"):
        path.unlink()
    assert run("--prompt", "a hat", "--num", 1, "--out", "x") == 2
    assert run(*FIRST) == 0


def write(folder: Path, name: str, **text: str) -> None:
    save_png(np.zeros((8, 8, 3), np.uint8), folder / name, text)


def test_a_folder_of_one_run_or_of_other_images_is_evaluated(tmp_path):
    for seed in range(2):
        write(
            tmp_path / "run", f"00_00{seed}.png", prompt=f"p{seed}", checkpoint="a", seed=str(seed)
        )
        write(tmp_path / "other", f"{seed}.png", Software=f"camera {seed}")
    assert len(single_images(tmp_path / "run")) == len(single_images(tmp_path / "other")) == 2


@pytest.mark.parametrize(
    "text", [{"checkpoint": "b"}, {"checkpoint": "a", "cfg_scale": "3"}, {"Software": "camera"}]
)
def test_a_folder_of_several_runs_is_not_evaluated(tmp_path, text):
    write(tmp_path / "x", "00_000.png", checkpoint="a", seed="0")
    write(tmp_path / "x", "00_001.png", seed="1", **text)
    with pytest.raises(UserError, match=r"x: holds images of several runs: the \w+ of 00_000\.png"):
        single_images(tmp_path / "x")
    shutil.make_archive(str(tmp_path / "x"), "zip", tmp_path / "x")
    with pytest.raises(UserError, match="holds images of several runs"):
        single_images(tmp_path / "x.zip")


@pytest.mark.parametrize("place", ["results/" + "a-long-name/" * 8, "", "x" * 39])
def test_two_long_values_are_shown_where_they_differ(tmp_path, place):
    write(tmp_path, "00_000.png", checkpoint=f"{place}0000004.pt")
    write(tmp_path, "00_001.png", checkpoint=f"{place}0000006.pt")
    with pytest.raises(UserError, match=r"0000004\.pt', that of 00_001\.png '.*0000006\.pt'"):
        single_images(tmp_path)
    texts = {name: {"checkpoint": f"{place}0000006.pt"} for name in ("00_000.png", "00_001.png")}
    fault = other_runs_fault(tmp_path, texts, {})
    assert fault.count("0000004.pt") == fault.count("0000006.pt") == 1
