"""`train_prior.py`: it reads images alone, goes on bit for bit, and refuses what does not fit."""

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from tiny import DIM, make_tiny_config

import train_prior
from utils.data.lmdb_writer import LMDBWriter
from utils.pretrained.priors import read_prior

LONG = "prior.max_num_steps=520"


@pytest.fixture
def images(tmp_path) -> Path:
    """Write a config and a database of 40 image embeddings; return the database's folder."""
    config = make_tiny_config(tmp_path, prior={"width": 8, "depth": 1, "batchsize": 8, "bank": 16})
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config.to_dict()))
    y = np.random.default_rng(0).normal(1, 1, (40, 1, DIM)).astype(np.float32)
    with LMDBWriter(config.data.feat_path, "y", {"encoder": "clip-a"}, 40) as writer:
        writer.append(y)
    return config.data.feat_path


@pytest.fixture
def script(tmp_path, monkeypatch):
    """Return a function that runs the script with `key=value` settings and flags."""

    def run(*words: str) -> None:
        config = ["--config", str(tmp_path / "config.yaml"), "prior.max_num_steps=6"]
        monkeypatch.setattr(sys, "argv", ["train_prior.py", *config, *words])
        train_prior.main()

    return run


def test_the_prior_lies_beside_the_embeddings_and_names_their_clip(images, script, capsys):
    script()
    prior, clip = read_prior(images / "prior.safetensors")
    assert clip == "clip-a"
    drawn = prior.draw(torch.randn(3, DIM), torch.randn(3, DIM), freedom=0.8)
    torch.testing.assert_close(drawn.norm(dim=1), torch.ones(3))
    assert "encoders.prior" in capsys.readouterr().out
    assert {path.name for path in images.iterdir()} == {
        "data.mdb", "prior.safetensors",
    }  # fmt: skip


def test_no_caption_is_read(images, script, tmp_path):
    # Neither caption files nor their embeddings exist, and the settings name places for both.
    text = f"data.text_feat_path={tmp_path / 'gone'}"
    assert not (tmp_path / "train").exists() and not (tmp_path / "lmdb" / "test").exists()
    script(text)
    assert (images / "prior.safetensors").exists()


@pytest.fixture
def killed(images, tmp_path):
    """Kill a training of 520 steps, a process of its own, after its first save; return its file."""
    out = tmp_path / "killed.safetensors"
    command = [sys.executable, train_prior.__file__, "--config", str(tmp_path / "config.yaml")]
    process = subprocess.Popen([*command, LONG, "--out", str(out)], stderr=subprocess.DEVNULL)
    saved = out.with_name(f"{out.name}.partial")
    while not saved.exists() and process.poll() is None:
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert saved.exists() and not out.exists()
    return out


def test_a_killed_training_goes_on_bit_for_bit(killed, script, tmp_path, capsys):
    script(LONG, "--out", str(tmp_path / "whole.safetensors"))
    capsys.readouterr()
    script(LONG, "--out", str(killed))
    assert "continuing from step" in capsys.readouterr().out
    assert killed.read_bytes() == (tmp_path / "whole.safetensors").read_bytes()


def test_a_killed_training_is_not_continued_with_other_options(killed, script, capsys):
    with pytest.raises(SystemExit) as end:
        script(LONG, "prior.lr=1e-4", "--out", str(killed))
    assert end.value.code == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "other `prior` options" in error and "rm " in error


@pytest.mark.parametrize(
    ("meta", "count", "message"),
    [
        ({"captions_hash": "a"}, 40, "holds embeddings of captions"),
        ({}, 1, "a prior needs many"),
    ],
)
def test_other_databases_are_refused(tmp_path, script, images, capsys, meta, count, message):
    other = tmp_path / "other"
    with LMDBWriter(other, "y", meta, count) as writer:
        writer.append(np.ones((count, 1, DIM), np.float32))
    with pytest.raises(SystemExit) as end:
        script(f"data.feat_path={other}")
    assert end.value.code == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1 and message in error[0]
