"""`train_prior.py`: it reads images alone, goes on bit for bit, and refuses what does not fit."""

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors import safe_open
from tiny import DIM, make_tiny_config

import train_prior
from utils.config.sections import Prior
from utils.data.lmdb_writer import LMDBWriter
from utils.pretrained.priors import read_prior
from utils.training.prior import Training

pytestmark = pytest.mark.bits  # of `make test-machines`

LONG = "prior.max_num_steps=520"


@pytest.fixture
def images(tmp_path) -> Path:
    """Write a config and a database of 40 image embeddings; return the database's folder."""
    config = make_tiny_config(tmp_path)
    values = config.to_dict()
    values["prior"] |= {"width": 8, "depth": 1, "batchsize": 8, "bank": 16}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(values))
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
    generated = prior.sample(torch.randn(3, DIM), torch.randn(3, DIM), freedom=0.8)
    torch.testing.assert_close(generated.norm(dim=1), torch.ones(3))
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


def contents(file: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    with safe_open(file, "pt") as opened:  # the order of its metadata differs from file to file
        return {name: opened.get_tensor(name) for name in opened.keys()}, opened.metadata()  # noqa: SIM118


def test_a_killed_training_goes_on_bit_for_bit(killed, script, tmp_path, capsys):
    script(LONG, "--out", str(tmp_path / "whole.safetensors"))
    capsys.readouterr()
    script(LONG, "--out", str(killed))
    assert "continuing from step" in capsys.readouterr().out
    (tensors, about), (expected, meant) = map(contents, (killed, tmp_path / "whole.safetensors"))
    assert about == meant and tensors.keys() == expected.keys()
    assert all(torch.equal(tensors[name], expected[name]) for name in expected)


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


@pytest.mark.parametrize("noise", [0.0, 1e-7, 1e-6])
def test_images_that_are_all_alike_are_refused_before_anything_is_written(
    tmp_path, script, images, capsys, noise
):
    rng, other = np.random.default_rng(0), tmp_path / "other"
    y = rng.normal(size=DIM) + noise * rng.normal(size=(4, 1, DIM))
    with LMDBWriter(other, "y", {}, 4) as writer:
        writer.append(y)
    with pytest.raises(SystemExit) as end:
        script(f"data.feat_path={other}")
    assert end.value.code == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1 and f"{other}: all 4 embeddings are alike" in error[0]
    assert [path.name for path in other.iterdir()] == ["data.mdb"]


def test_one_other_image_among_copies_gives_a_finite_prior(tmp_path, script, images):
    other, y = tmp_path / "other", np.ones((6, 1, DIM))
    y[3, 0, :2] = -1
    with LMDBWriter(other, "y", {}, 6) as writer:
        writer.append(y)
    script(f"data.feat_path={other}")
    prior, _ = read_prior(other / "prior.safetensors")
    assert prior.sample(torch.randn(3, DIM), torch.randn(3, DIM), freedom=0.8).isfinite().all()


def test_a_training_that_diverges_ends_with_one_line_and_writes_nothing(images, script, capsys):
    with pytest.raises(SystemExit) as end:
        script("prior.lr=1e38", "prior.max_num_steps=40")
    assert end.value.code == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "holds NaN or infinite numbers" in error and "lower prior.lr" in error
    assert not (images / "prior.safetensors").exists()


OPTIONS = Prior(width=8, depth=1, batchsize=8, bank=16, max_num_steps=40)


def trained(y: torch.Tensor, steps: int) -> Training:
    """Return a training on y after so many steps."""
    training = Training(y, OPTIONS)
    for _ in range(steps):
        training.take_step()
    return training


def went_on(y: torch.Tensor, state: dict, path: Path, steps: int) -> Training:
    """Return a new training that went on from a state for so many steps."""
    torch.save(state, path)
    training = Training(y, OPTIONS)
    training.restore(path)
    for _ in range(steps):
        training.take_step()
    return training


def same(a: Training, b: Training) -> bool:
    """Return True if two trainings have equal weights."""
    pairs = zip(a.prior.parameters(), b.prior.parameters(), strict=True)
    return all(torch.equal(x, y) for x, y in pairs)


def test_a_permutation_of_many_embeddings_serves_many_steps(tmp_path, monkeypatch):
    monkeypatch.setattr("utils.training.prior.FEW", 50)
    y = torch.nn.functional.normalize(torch.randn(100, DIM), dim=1)
    training = Training(y, OPTIONS)
    taken = torch.cat([training._rows() for _ in range(4)])
    assert len(taken.unique()) == len(taken) == 96  # four times 24 of 100, none twice
    continued = went_on(y, trained(y, 3).state(), tmp_path / "partial", 3)
    assert same(continued, trained(y, 6))


def test_few_embeddings_are_permuted_in_each_step_as_before(tmp_path):
    y = torch.nn.functional.normalize(torch.randn(100, DIM), dim=1)
    training = Training(y, OPTIONS)
    expected = torch.Generator().manual_seed(OPTIONS.seed)
    for _ in range(3):
        assert torch.equal(training._rows(), torch.randperm(100, generator=expected)[:24])
    state = trained(y, 3).state()
    del state["order"]  # earlier versions did not save it
    assert same(went_on(y, state, tmp_path / "partial", 3), trained(y, 6))
