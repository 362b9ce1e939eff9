"""Priors and means know the embeddings that they were made from."""

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from tiny import DIM, make_tiny_config

import train_prior
from utils.base.errors import UserError
from utils.config.schema import Config
from utils.config.sections import Prior
from utils.data.embeddings import (
    check_image_mean,
    check_prior,
    mean_made_from,
    other_encoders,
    read_directions,
    read_image_mean,
    write_image_mean,
)
from utils.data.lmdb_reader import LMDBReader
from utils.data.lmdb_writer import LMDBWriter
from utils.data.source_files import RECORD
from utils.evaluation.checkpoints import content_settings
from utils.evaluation.results import Results
from utils.training.prior import Training

Y = np.random.default_rng(0).normal(1, 1, (40, 1, DIM)).astype(np.float32)


def write(folder: Path, y: np.ndarray = Y, clip: str = "clip-a", content: int = 1) -> None:
    """Write a database of image embeddings anew; keep the other files of its folder."""
    (folder / "data.mdb").unlink(missing_ok=True)
    names = [str(i) for i in range(len(y))]
    with LMDBWriter(folder, "y", {"encoder": clip, "names_hash": names}, len(y)) as writer:
        writer.append(y, np.full(len(y), content, RECORD))


@pytest.fixture
def config(tmp_path) -> Config:
    """A config with a database of 40 embeddings, their mean and a prior beside them."""
    folder = tmp_path / "y"
    prior = Prior(width=8, depth=1, batchsize=8, bank=16, max_num_steps=2)
    made = make_tiny_config(
        tmp_path,
        data={"feat_path": folder},
        encoders={"prior": folder / "prior.safetensors", "image_mean": folder / "image_mean.npy"},
        sampling={"freedom": 0.7},
    ).model_copy(update={"prior": prior})
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(made.to_dict()))
    write(folder)
    write_image_mean(folder)
    return made.asked_by(tmp_path / "config.yaml", ())


@pytest.fixture
def script(config, tmp_path, monkeypatch):
    """Return a function that runs train_prior.py with `key=value` settings and flags."""

    def run(*words: str) -> None:
        argv = ["train_prior.py", "--config", str(tmp_path / "config.yaml"), *words]
        monkeypatch.setattr(sys, "argv", argv)
        train_prior.main()

    return run


@pytest.mark.parametrize(
    "other",
    [Y + 0.001, Y[::-1].copy(), np.concatenate([Y, Y[:1]]), Y[:30]],
    ids=["another image", "another order", "one more", "fewer"],
)
def test_a_partial_prior_does_not_go_on_with_other_embeddings(config, script, capsys, other):
    training = Training(read_directions(LMDBReader(config.data.feat_path), 99), config.prior)
    training.take_step()
    partial = config.data.feat_path / "prior.safetensors.partial"
    torch.save(training.state(), partial)
    write(config.data.feat_path, other)
    with pytest.raises(SystemExit):
        script()
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert f"{partial} is of a training on other embeddings" in error
    assert error.endswith(f"remove it to start anew: rm {partial}")


def test_a_partial_prior_that_names_no_embeddings_goes_on(config, script, capsys):
    training = Training(read_directions(LMDBReader(config.data.feat_path), 99), config.prior)
    training.take_step()
    state = training.state()
    del state["embeddings"]
    torch.save(state, config.data.feat_path / "prior.safetensors.partial")
    script()
    assert "continuing from step 1" in capsys.readouterr().out


def checks(config: Config) -> None:
    check_image_mean(config, "clip-a")
    check_prior(config)


REMADE = [{"content": 2}, {"y": Y[:30]}, {"clip": "clip-b"}]


@pytest.mark.parametrize("remade", REMADE, ids=["content", "count", "clip"])
def test_a_prior_and_a_mean_beside_other_embeddings_are_refused(config, script, remade):
    script()
    checks(config)
    write(config.data.feat_path, **remade)
    said = "was made from other embeddings than those beside it; make it again: python "
    with pytest.raises(UserError, match=rf"encoders\.prior: .* {said}train_prior\.py --config"):
        check_prior(config)
    with pytest.raises(UserError, match=rf"encoders\.image_mean: .* {said}preprocess_scripts/clip"):
        check_image_mean(config, "clip-a")
    write_image_mean(config.data.feat_path)
    script()
    check_image_mean(config, remade.get("clip", "clip-a"))
    check_prior(config)


def test_a_prior_elsewhere_is_noted_when_the_embeddings_are_others(
    config, script, tmp_path, capsys
):
    out = tmp_path / "own.safetensors"
    script("--out", str(out))
    encoders = config.encoders.model_copy(update={"prior": out})
    elsewhere = config.model_copy(update={"encoders": encoders})
    check_prior(elsewhere)
    assert "note" not in capsys.readouterr().err
    write(config.data.feat_path, content=2)
    check_prior(elsewhere)
    note = capsys.readouterr().err
    assert f"note: encoders.prior: {out} was made from other embeddings than" in note


def test_copied_embeddings_are_the_same(config, script, tmp_path):
    script()
    moved = Path(shutil.copytree(config.data.feat_path, tmp_path / "moved"))
    changes = {"prior": moved / "prior.safetensors", "image_mean": moved / "image_mean.npy"}
    checks(config.model_copy(update={"encoders": config.encoders.model_copy(update=changes)}))


def test_a_mean_of_another_clip_is_refused(config):
    with pytest.raises(UserError, match=r"another CLIP \(clip-a\) than encoders\.clip \(clip-b\)"):
        check_image_mean(config, "clip-b")


def test_a_mean_that_names_nothing_is_used(config):
    path = config.encoders.image_mean
    mean = read_image_mean(path, DIM)
    np.save(path, mean.numpy())
    assert mean_made_from(path) == {}
    check_image_mean(config, "clip-b")


def test_a_mean_of_these_embeddings_is_not_computed_again(config):
    written = config.encoders.image_mean.stat().st_mtime_ns
    write_image_mean(config.data.feat_path)
    assert config.encoders.image_mean.stat().st_mtime_ns == written
    write(config.data.feat_path, content=2)
    write_image_mean(config.data.feat_path)
    assert config.encoders.image_mean.stat().st_mtime_ns > written


@pytest.mark.parametrize("replaced", ["image_mean", "prior"])
def test_a_record_counts_for_the_content_of_the_named_files(config, script, tmp_path, replaced):
    script()
    results, before = Results(tmp_path / "evaluation"), content_settings(config)
    assert set(before) == {"image_mean_content", "prior_content"}
    results.add({"n": 8, **before})
    assert results.find({"n": 8, **content_settings(config)}) is not None
    file = getattr(config.encoders, replaced)
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    assert results.find({"n": 8, **content_settings(config)}) is None
    results.add({"n": 8})  # as older versions did
    assert results.find({"n": 8, **content_settings(config)}) is not None
    assert results.find({"n": 9, **content_settings(config)}) is None


def test_training_data_of_other_encoders_are_named(config):
    assert other_encoders(config, "vae-1", "clip-a") == []
    assert other_encoders(config, None, None) == []
    (line,) = other_encoders(config, "vae-1", "clip-b")
    assert line.startswith(
        f"{config.data.feat_path}: holds embeddings of clip-a, but encoders.clip"
    )
    config.data.root.parent.mkdir(parents=True, exist_ok=True)
    with LMDBWriter(config.data.root, "z", {"encoder": "vae-1"}, 2) as writer:
        writer.append(np.ones((2, 4, 2, 2)))
    (line,) = other_encoders(config, "vae-2", "clip-a")
    assert "holds latents of vae-1, but encoders.vae is vae-2; make them again" in line
