"""From a sentence to pictures, by the script."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import CONTEXT_LENGTH, RESOLUTION, make_tiny_checkpoint, make_tiny_config

import t2f
from utils.checkpoint import export_safetensors

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """A released model whose encoders are the tiny ones."""
    folder = tmp_path_factory.mktemp("released")
    make_tiny_checkpoint(folder / "0000010.pt", make_tiny_config(folder))
    export_safetensors(folder / "0000010.pt", folder / "dit.safetensors")
    return folder / "dit.safetensors"


@pytest.fixture
def run(checkpoint, tmp_path, monkeypatch):
    """Call the script's main() with flags; returns the folder it wrote into."""

    def call(*flags: object) -> Path:
        out = tmp_path / "out"
        given = ["--ckpt", checkpoint, "--out", out, "--device", "cpu", *flags]
        monkeypatch.setattr(sys, "argv", ["t2f.py", *map(str, given)])
        t2f.main()
        return out

    return call


def error_of(run, capsys, *flags: object) -> str:
    """What a user's mistake prints: one line, exit code 2."""
    with pytest.raises(SystemExit) as stop:
        run(*flags)
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line


def test_images_and_a_grid_are_written_for_every_prompt(run, capsys):
    out = run("--prompt", "red hair", "--prompt", "a blue hat", "--num", 3, "--batch_size", 4)
    names = sorted(path.name for path in out.iterdir())
    assert names == [*(f"{p:02d}_{k:03d}.png" for p in (0, 1) for k in range(3)), "grid.png"]
    assert Image.open(out / "01_002.png").size == (RESOLUTION, RESOLUTION)
    assert str(out / "grid.png") in capsys.readouterr().out


def test_settings_stand_in_the_png(run):
    out = run("--prompt", "red hair", "--seeds", "4,7", "--num_steps", 2, "--cfg_scale", "None")
    text = Image.open(out / "00_007.png").text
    assert text["prompt"] == "red hair"
    assert text["seed"] == "7"
    assert (text["cfg_scale"], text["num_steps"], text["solver"]) == ("None", "2", "heun")
    assert text["checkpoint"].endswith("dit.safetensors")


def test_unset_settings_come_from_the_checkpoint(run):
    out = run("--prompt", "red hair", "--num", 1)
    text = Image.open(out / "00_000.png").text
    assert (text["cfg_scale"], text["num_steps"], text["seed"]) == ("2.0", "3", "0")


def test_a_seed_gives_the_same_face_whatever_is_drawn_with_it(run):
    pixels = []
    for flags in (("--seeds", "3"), ("--seeds", "1-4", "--prompt", "another", "--batch_size", 3)):
        out = run("--prompt", "red hair", *flags)
        pixels.append(np.asarray(Image.open(out / "00_003.png")).astype(int))
    assert np.abs(pixels[0] - pixels[1]).max() <= 1


def test_prompts_come_from_a_file_too(run, tmp_path):
    (tmp_path / "prompts.txt").write_text("red hair\n\n  a green hat \n")
    out = run("--prompts_file", tmp_path / "prompts.txt", "--num", 1)
    assert Image.open(out / "01_000.png").text["prompt"] == "a green hat"


def test_a_long_prompt_is_cut_and_said_so(run, capsys):
    words = "red hair and a hat " * CONTEXT_LENGTH
    run("--prompt", words, "--prompt", "short", "--num", 1)
    notes = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note")]
    assert len(notes) == 1
    assert f"first {CONTEXT_LENGTH} tokens" in notes[0]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "say what to draw"),
        (["--prompt", "  "], "--prompt is empty"),
        (["--prompts_file", "none.txt"], "none.txt: cannot be read"),
        (["--prompt", "x", "--ckpt", "none.pt"], "none.pt does not exist"),
        (["--prompt", "x", "--num", 0], "--num and --batch_size must be at least 1"),
        (["--prompt", "x", "--num_steps", 0], "num_steps is 0"),
        (["--prompt", "x", "--num_steps", "many"], "--num_steps many"),
        (["--prompt", "x", "--seed", -1], "--seed -1"),
        (["--prompt", "x", "--solver", "rk45"], "solver 'rk45' is not one of heun"),
        (["--prompt", "x", "--cfg_scale", "high"], "should be a number or None"),
        (["--prompt", "x", "--seeds", "5-1"], "should look like 0-63,100"),
        (["--prompt", "x", "--device", "toaster"], "--device toaster"),
    ],
)
def test_mistakes_give_one_clear_line(run, capsys, flags, message):
    assert message in error_of(run, capsys, *flags)


def test_an_empty_prompts_file_gives_one_clear_line(run, capsys, tmp_path):
    (tmp_path / "prompts.txt").write_text("\n \n")
    line = error_of(run, capsys, "--prompts_file", tmp_path / "prompts.txt")
    assert "prompts.txt: holds no prompt" in line


def test_missing_encoders_give_one_clear_line(run, capsys, tmp_path):
    config = make_tiny_config(tmp_path, encoders={"clip": tmp_path / "gone" / "clip"})
    path = make_tiny_checkpoint(tmp_path / "0000001.pt", config)
    assert "encoders.clip: no CLIP at" in error_of(run, capsys, "--prompt", "x", "--ckpt", path)


def test_a_checkpoint_of_another_clip_gives_one_clear_line(run, capsys, tmp_path):
    config = make_tiny_config(tmp_path, model={"num_classes": 8}, data={"feat_dim": 8})
    path = make_tiny_checkpoint(tmp_path / "0000001.pt", config)
    line = error_of(run, capsys, "--prompt", "x", "--ckpt", path)
    assert "takes conditions of 8 numbers" in line


def test_a_checkpoint_without_config_takes_the_one_given(run, tmp_path):
    config = make_tiny_config(tmp_path, sampling={"num_steps": 2})
    path = make_tiny_checkpoint(tmp_path / "0000001.pt", config)
    state = torch.load(path, weights_only=True)
    del state["config"]
    torch.save(state, path)
    (tmp_path / "mine.yaml").write_text(config.to_yaml())
    flags = ["--prompt", "x", "--num", 1, "--ckpt", path, "--config", tmp_path / "mine.yaml"]
    assert Image.open(run(*flags) / "00_000.png").text["num_steps"] == "2"


def test_the_prompt_decides_the_picture(run):
    out = run("--prompt", "red hair", "--prompt", "glasses", "--seeds", "0", "--cfg_scale", 4)
    first, second = (np.asarray(Image.open(out / f"0{p}_000.png")).astype(int) for p in (0, 1))
    assert np.abs(first - second).max() > 2


@pytest.mark.e2e
def test_the_script_runs_as_users_run_it(checkpoint, tmp_path):
    command = [sys.executable, "t2f.py", "--prompt", "red hair", "--num", "2", "--ckpt", checkpoint]
    done = subprocess.run(
        [*map(str, command), "--out", str(tmp_path)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "grid.png").exists()
