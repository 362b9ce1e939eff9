"""Flags of an edit: those without effect, and files that cannot be read, are refused at once."""

import sys
from pathlib import Path

import pytest
from conftest import crude_face
from PIL import Image

import t2f


@pytest.fixture
def face(tmp_path) -> Path:
    crude_face(3, 32).save(tmp_path / "face.png")
    return tmp_path / "face.png"


def end_of(flags, capsys, monkeypatch) -> str:
    """Run t2f.py with a mistake; return the only line on stderr."""
    monkeypatch.setattr(sys, "argv", ["t2f.py", *map(str, flags)])
    with pytest.raises(SystemExit) as stop:
        t2f.main()
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--amount", 2, "--strength", 0.5], "--amount is how far words go: give --add, "),
        (["--freedom", 1, "--strength", 0.5], "--freedom is of sentences: give --add, "),
        (["--freedom", 0, "--add", "a hat"], "need a --freedom above 0"),
        (["--add", "a hat", "--seeds", "1", "--num", 2], "--num is replaced by --seeds"),
        (["--seeds", "1", "--seed", 2], "--seed is replaced by --seeds"),
        (["--negative", "a hat", "--negative", "a beard"], "argument --negative: is given twice"),
        (["--mask", "a.png", "--mask", "b.png"], "argument --mask: is given twice"),
    ],
)
def test_a_flag_without_effect_is_refused(flags, message, face, capsys, monkeypatch):
    assert message in end_of(["--image", face, *flags], capsys, monkeypatch)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--image", "gone.png", "--add", "a hat"], "gone.png: there is no image of this name"),
        (["--image", "gone.png"], "gone.png: there is no image of this name"),
        (["--image", "FACE", "--add", "a hat", "--mask", "README.md"], "README.md: unreadable"),
        (["--prompt", "a man", "--add", "a hat", "--mask", "gone.png"], "gone.png: there is no"),
        (["--image", "FACE", "--prompt", "a hat", "--mask", "BLACK"], "is black"),
        (["--image", "FACE", "--add", "a hat", "--mask", "docs"], "docs: is a folder"),
    ],
)
def test_an_unreadable_file_is_refused_before_networks_are_loaded(
    flags, message, face, tmp_path, capsys, monkeypatch
):
    Image.new("L", (9, 9)).save(tmp_path / "black.png")
    files = {"FACE": face, "BLACK": tmp_path / "black.png"}
    flags = [files.get(flag, flag) for flag in flags]
    flags += ["--ckpt", "none.pt"]  # refused when networks are loaded
    assert message in end_of(flags, capsys, monkeypatch)


@pytest.mark.parametrize("flags", [["--strength", 0.5], ["--from", "a man", "--image", "FACE"]])
def test_an_edit_needs_an_image_and_what_it_becomes(flags, face, capsys, monkeypatch):
    given = [face if flag == "FACE" else flag for flag in flags]
    assert end_of(["--prompt", "a hat", *given], capsys, monkeypatch).startswith("error: ")
