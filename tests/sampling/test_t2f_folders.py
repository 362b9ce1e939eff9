"""t2f.py finds released networks and their encoders, whatever folder it is started in."""

import sys

import pytest
from tiny import make_tiny_checkpoint, make_tiny_config

import t2f
from utils.pretrained.denoisers import export_safetensors


def test_a_released_model_is_used_from_another_folder_and_machine(tmp_path, monkeypatch, capsys):
    home, released = tmp_path / "home", tmp_path / "released" / "dit.safetensors"
    (home / "weights").mkdir(parents=True)
    make_tiny_config(home / "weights")
    monkeypatch.chdir(home)
    encoders = {"vae": "weights/vae", "clip": "weights/clip"}
    config = make_tiny_config(home / "weights", encoders=encoders)
    make_tiny_checkpoint(home / "0000010.pt", config)
    local = export_safetensors(home / "0000010.pt", released)
    assert local == [str(home / "weights" / "vae"), str(home / "weights" / "clip")]

    def run_t2f(*flags: str) -> None:
        flags = ("--prompt", "x", "--num", "1", "--ckpt", str(released), *flags)
        monkeypatch.setattr(sys, "argv", ["t2f.py", "--out", str(tmp_path / "out"), *flags])
        t2f.main()

    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    run_t2f()
    (home / "weights").rename(tmp_path / "moved")  # as if this were another machine
    capsys.readouterr()
    with pytest.raises(SystemExit):
        run_t2f()
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "encoders.clip: no CLIP at" in line and "copy it there or beside the checkpoint" in line
    run_t2f(*(f"encoders.{name}={tmp_path / 'moved' / name}" for name in ("vae", "clip")))
    for name in ("vae", "clip"):
        (tmp_path / "moved" / name).rename(released.parent / name)
    run_t2f()


def test_the_shipped_model_is_found_from_another_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["t2f.py", "--prompt", "a man", "--num", "1", "--out", "out"])
    t2f.main()
    assert (tmp_path / "out" / "00_000.png").exists()
