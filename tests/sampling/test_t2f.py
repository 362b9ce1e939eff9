"""t2f.py: from sentences and images to images."""

import hashlib
import itertools
import json
import sys
import zipfile
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import crude_face
from PIL import Image
from tiny import (
    CONTEXT_LENGTH,
    RESOLUTION,
    make_tiny_checkpoint,
    make_tiny_config,
    make_tiny_release,
)

import t2f
from utils.pretrained.denoisers import export_safetensors

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """Make a released model with the tiny encoders; return its file."""
    return make_tiny_release(tmp_path_factory.mktemp("released"))


@pytest.fixture
def run(checkpoint, tmp_path, monkeypatch):
    """Return a function that runs main() with flags; it returns the new folder that was written."""
    numbers = itertools.count()

    def call(*flags: object) -> Path:
        out = tmp_path / f"out{next(numbers)}"
        given = ["--ckpt", checkpoint, "--out", out, "--device", "cpu", *flags]
        monkeypatch.setattr(sys, "argv", ["t2f.py", *map(str, given)])
        t2f.main()
        return out

    return call


def error_of(run, capsys, *flags: object) -> str:
    """Run with a user's mistake; return the only line on stderr, after checking for exit code 2."""
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
    assert (text["prompt"], text["seed"]) == ("red hair", "7")
    assert (text["cfg_scale"], text["num_steps"], text["solver"]) == ("None", "2", "heun")
    assert text["checkpoint"].endswith("dit.safetensors")


def test_unset_settings_come_from_the_checkpoint(run):
    out = run("--prompt", "red hair", "--num", 1)
    text = Image.open(out / "00_000.png").text
    assert (text["cfg_scale"], text["num_steps"], text["seed"]) == ("2.0", "3", "0")


def test_a_preset_comes_before_the_checkpoint_and_flags_before_the_preset(run):
    out = run("--prompt", "red hair", "--num", 1, "--preset", "fast", "--num_steps", 4)
    text = Image.open(out / "00_000.png").text
    assert (text["solver"], text["num_steps"], text["amp"]) == ("dpmpp_2m", "4", "bf16")


def test_sigmas_of_ones_own_replace_the_number_of_steps(run):
    out = run("--prompt", "red hair", "--num", 1, "sampling.sigmas=[80,5,0.5,0.1]")
    assert Image.open(out / "00_000.png").text["num_steps"] == "4"


@pytest.fixture(scope="module")
def student(checkpoint) -> Path:
    """Make a released student with the tiny encoders; return its file."""
    path = checkpoint.with_name("student.safetensors")
    values = ("distill.sigmas=[20,2]", "sampling.preset=instant", "sampling.cfg_scale=null")
    export_safetensors(checkpoint.with_name("0000010.pt"), path, values)
    return path


@pytest.mark.parametrize("flags", [(), ("--preset", "instant")])
def test_a_student_generates_with_its_own_sampler(run, student, flags):
    out = run("--prompt", "red hair", "--num", 1, "--ckpt", student, *flags)
    text = Image.open(out / "00_000.png").text
    assert (text["solver"], text["num_steps"], text["cfg_scale"]) == ("euler", "2", "None")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--preset", "fast"), "distilled for Euler steps at sigmas=[20,2]"),
        (("--cfg_scale", 2), "without further guidance; use preset instant"),
        (("--num_steps", 5), "num_steps is 5, but sigmas lists 2 noise levels"),
    ],
)
def test_a_student_refuses_another_sampler(run, capsys, student, flags, message):
    assert message in error_of(run, capsys, "--prompt", "a", "--ckpt", student, *flags)


def test_the_preset_of_students_is_refused_for_other_networks(run, capsys):
    line = error_of(run, capsys, "--prompt", "a", "--preset", "instant")
    assert "instant is for a student" in line


def test_a_seed_gives_the_same_face_whatever_is_generated_with_it(run):
    pixels = []
    for flags in (("--seeds", "3"), ("--seeds", "1-4", "--prompt", "another", "--batch_size", 3)):
        out = run("--prompt", "red hair", *flags)
        pixels.append(np.asarray(Image.open(out / "00_003.png")).astype(int))
    assert np.abs(pixels[0] - pixels[1]).max() <= 1


def test_prompts_come_from_a_file_too(run, tmp_path):
    (tmp_path / "prompts.txt").write_text("red hair\n\n  a green hat \n")
    out = run("--prompts_file", tmp_path / "prompts.txt", "--num", 1)
    assert Image.open(out / "01_000.png").text["prompt"] == "a green hat"


def test_a_note_names_the_long_prompt_that_is_cut(run, capsys):
    words = "red hair and a hat " * CONTEXT_LENGTH
    run("--prompt", words, "--prompt", "short", "--num", 1)
    notes = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note")]
    assert len(notes) == 1
    assert f"first {CONTEXT_LENGTH} tokens" in notes[0]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "say what to generate"),
        (["--prompt", "  "], "the prompt is empty"),
        (["--prompts_file", "none.txt"], "none.txt: cannot be read"),
        (
            ["--prompt", "x", "--ckpt", "none.pt"],
            "none.pt does not exist; name a checkpoint (.pt, ",
        ),
        (["--prompt", "x", "--num", 0], "--num and --batch_size must be at least 1"),
        (
            ["--prompt", "x", "--num_steps", 0],
            "--num_steps sampling.num_steps: should be greater than 0",
        ),
        (
            ["--prompt", "x", "--num_steps", "many"],
            "--num_steps sampling.num_steps: should be a valid integer, got 'many'",
        ),
        (
            ["--prompt", "x", "--seed", -1],
            "--seed sampling.seed: should be greater than or equal to 0",
        ),
        (
            ["--prompt", "x", "--solver", "rk45"],
            "--solver sampling.solver: should be 'heun', 'euler'",
        ),
        (["--prompt", "x", "--preset", "quick"], "--preset sampling.preset: should be 'fast'"),
        (
            ["--prompt", "x", "--num_steps", 3, "sampling.num_steps=4"],
            "--num_steps sets sampling.num_steps to 3, but override on the same command line",
        ),
        (["--prompt", "x", "--cfg_scale", "high"], "should be a number or None"),
        (["--prompt", "x", "--seeds", "5-1"], "should look like 0-63,100"),
        (["--prompt", "x", "--device", "toaster"], "--device toaster"),
        (["--image", "none.png"], "none.png: there is no image of this name; check the path"),
        (["--prompt", "x", "--negative", " "], "negative is empty; say what to generate"),
        (["--image", "tests"], "tests: is a folder; name an image in it"),
        (["--image", ""], "image: its path is empty; name an image"),
        (["--image", "README.md"], "README.md: unreadable image (of no known format); repair or"),
        (
            ["--prompt", "x", "--prompt", "y", "--mix", "1"],
            "number of weights is 1",
        ),
        (["--prompt", "x", "--prompt", "y", "--mix", "1,-1"], "the weights sum to 0"),
        (["--prompt", "x", "--prompt", "y", "--mix", "0,0"], "the weights sum to 0"),
        (["--prompt", "x", "--prompt", "y", "--mix", "a,b"], "should be numbers"),
        (["--prompt", "x", "--prompt", "y", "--mix", "nan,1"], "should be numbers"),
        (["--prompt", "x", "--interpolate", 3], "between two prompts or images, not 1"),
        (["--prompt", "x", "--prompt", "y", "--interpolate", 1], "should be at least 2"),
        (["--prompt", "x", "--prompt", "y", "--interpolate", 10**9], "and at most 1000000"),
        (
            ["--prompt", "x", "--prompt", "y", "--interpolate", 3, "--mix", "1,1"],
            "mix and interpolate exclude each other",
        ),
    ],
)
def test_mistakes_give_one_clear_line(run, capsys, flags, message):
    assert message in error_of(run, capsys, *flags)


def test_an_empty_prompts_file_gives_one_clear_line(run, capsys, tmp_path):
    (tmp_path / "prompts.txt").write_text("\n \n")
    line = error_of(run, capsys, "--prompts_file", tmp_path / "prompts.txt")
    assert "prompts.txt: holds no prompt" in line


def write_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("images/0.png", b"")


@pytest.mark.parametrize(
    ("name", "write", "message"),
    [
        ("face.png", Image.new("RGB", (8, 8)).save, "is not a checkpoint, the .pt file of a"),
        ("face.pt", partial(Image.new("RGB", (8, 8)).save, format="PNG"), "is not a checkpoint"),
        ("notes.txt", lambda path: path.write_text("data: x"), "is not a checkpoint"),
        ("images.zip", write_zip, "is not a checkpoint"),
        ("images.pt", write_zip, "is not a checkpoint"),
        ("empty.txt", Path.touch, "empty.txt is empty"),
        ("images", Path.mkdir, "images: is no release folder"),
    ],
)
def test_a_file_that_is_no_network_is_called_so(run, capsys, tmp_path, name, write, message):
    write(tmp_path / name)
    line = error_of(run, capsys, "--prompt", "x", "--ckpt", tmp_path / name)
    assert message in line
    assert "; name a checkpoint (.pt, .safetensors), or a folder that train_latent_t2f.py" in line


def test_missing_encoders_give_one_clear_line(run, capsys, tmp_path):
    config = make_tiny_config(tmp_path, encoders={"clip": tmp_path / "gone" / "my_clip"})
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


def test_the_prompt_decides_the_image(run):
    out = run("--prompt", "red hair", "--prompt", "glasses", "--seeds", "0", "--cfg_scale", 4)
    first, second = (np.asarray(Image.open(out / f"0{p}_000.png")).astype(int) for p in (0, 1))
    assert np.abs(first - second).max() > 2


@pytest.fixture
def face(tmp_path) -> Path:
    """Write an image that is larger than the model's and not square; return its path."""
    path = tmp_path / "face.png"
    crude_face(3, 48).resize((60, 48)).save(path)
    return path


def pixels_of(out: Path, row: int, seed: int = 0) -> np.ndarray:
    return np.asarray(Image.open(out / f"{row:02d}_{seed:03d}.png")).astype(int)


def test_rows_come_in_the_order_of_prompts_and_images(run, face):
    out = run("--prompt", "red hair", "--image", face, "--prompt", "a hat", "--num", 2)
    texts = [Image.open(out / f"0{row}_001.png").text for row in range(3)]
    assert [text.get("prompt") for text in texts] == ["red hair", None, "a hat"]
    assert [text.get("image") for text in texts] == [None, str(face), None]
    digest = hashlib.sha256(Path(face).read_bytes()).hexdigest()[:8]
    assert [text.get("image_hash") for text in texts] == [None, digest, None]
    grid = Image.open(out / "grid.png").text
    assert grid["prompt"] == "red hair\na hat"
    assert (grid["image"], grid["image_hash"]) == (str(face), digest)


def test_the_image_decides_the_image(run, face, tmp_path):
    crude_face(9, 48).save(tmp_path / "other.png")
    out = run("--image", face, "--image", tmp_path / "other.png", "--num", 1, "--cfg_scale", 4)
    assert np.abs(pixels_of(out, 0) - pixels_of(out, 1)).max() > 2


def test_the_grid_shows_the_image_that_is_asked_for(run, tmp_path):
    Image.new("RGB", (RESOLUTION, RESOLUTION), (255, 0, 255)).save(tmp_path / "pink.png")

    def pink(*flags: object) -> int:
        grid = np.asarray(Image.open(run(*flags, "--num", 2) / "grid.png"))
        return int((grid == (255, 0, 255)).all(axis=2).sum())

    assert pink("--prompt", "pink.png") == 0
    alone = pink("--image", tmp_path / "pink.png")
    assert alone > 1000
    assert pink("--prompt", "x", "--image", tmp_path / "pink.png", "--mix", "1,1") == alone


def test_a_mixture_is_one_row_and_says_its_weights(run, face):
    out = run("--image", face, "--prompt", "a hat", "--mix", "3,7", "--mix", "1,1", "--num", 1)
    assert sorted(path.name for path in out.iterdir()) == ["00_000.png", "01_000.png", "grid.png"]
    text = Image.open(out / "00_000.png").text
    assert json.loads(text["mix"]) == [
        {"image": str(face), "weight": pytest.approx(0.3)},
        {"prompt": "a hat", "weight": pytest.approx(0.7)},
    ]
    assert (text["prompt"], text["image"]) == ("a hat", str(face))
    assert len(text["image_hash"]) == 8
    rows = [json.loads(line) for line in Image.open(out / "grid.png").text["mix"].splitlines()]
    assert [row[0]["weight"] for row in rows] == pytest.approx([0.3, 0.5])


def test_interpolation_begins_and_ends_with_its_two_conditions(run, face):
    flags = ("--prompt", "red hair", "--image", face, "--seeds", "2", "--cfg_scale", 4)
    ends = [pixels_of(run(*flags), row, 2) for row in (0, 1)]
    out = run(*flags, "--interpolate", 3)
    steps = [pixels_of(out, row, 2) for row in range(3)]
    assert np.abs(steps[0] - ends[0]).max() <= 1
    assert np.abs(steps[2] - ends[1]).max() <= 1
    assert np.abs(steps[1] - steps[0]).max() > 1
    assert "mix" not in Image.open(out / "00_002.png").text


def test_prompts_of_a_file_can_be_mixed(run, tmp_path):
    (tmp_path / "prompts.txt").write_text("red hair\na green hat\n")
    out = run("--prompts_file", tmp_path / "prompts.txt", "--mix", "1,1", "--num", 1)
    assert Image.open(out / "00_000.png").text["prompt"] == "red hair\na green hat"
