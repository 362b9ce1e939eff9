"""Whole trainings of networks with options: they continue bit for bit and train all weights."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from published_labels import write_published
from tiny import DIM, make_tiny_config
from trainings import final_state, run

from models.batch_random import BatchRandom
from utils.config.load import load_config
from utils.pretrained.checkpoint_files import load_checkpoint
from utils.pretrained.denoisers import load_denoiser
from utils.training.batches import make_condition
from utils.training.checkpoint import list_checkpoints

pytestmark = pytest.mark.bits  # of `make test-machines`

CLASSES = 3
OPTIONS = {
    "learned_and_fixed_perturbation": {
        "model": {"perturbation": True},
        "train": {"perturbation": 0.8, "perturbation_type": "fixed"},
    },
    "learned_type_and_self_cond": {
        "model": {"self_cond": True},
        "train": {"perturbation_type": "learnable"},
    },
    "labels": {
        "model": {"num_classes": CLASSES},
        "data": {"feat_path": None},
        "train": {"perturbation": 0},
    },
    "labels_and_external_features": {
        "model": {"num_classes": CLASSES, "ext_feature_dim": DIM},
        "train": {"perturbation": 0},
    },
    "exact_gelu_and_muon": {"model": {"mlp": "gelu"}, "train": {"optimizer": "muon"}},
}


@pytest.fixture(scope="module")
def databases(tmp_path_factory) -> Path:
    """Write latents (4, 4, 4) of 20 images with class labels, and embeddings of these images."""
    folder, rng = tmp_path_factory.mktemp("options"), np.random.default_rng(0)
    labels = (np.arange(20) % CLASSES).tolist()
    for name, shape in (("z", (8, 4, 4)), ("feat", (DIM,))):
        samples = rng.standard_normal((20, *shape), np.float32)
        write_published(folder / "published" / name, name, samples, labels)
    return folder


@pytest.fixture
def configured(databases, tmp_path) -> Callable[[str], Path]:
    """Return `configured(name)`, which writes a config with the options of that name."""

    def write(name: str) -> Path:
        published = databases / "published"
        options = OPTIONS[name]
        sections = {
            "data": {"root": published / "z", "feat_path": published / "feat"},
            "model": {"in_size": 4},
            "train": {"max_num_steps": 4},
            "log": {"ckpt_every": 2, "log_every": 2, "sample_every": 0, "use_tensorboard": False},
            "eval": {"feat_path": None},
        }
        sections = {n: sections.get(n, {}) | options.get(n, {}) for n in sections | options}
        path = tmp_path / f"{name}.yaml"
        path.write_text(make_tiny_config(databases, **sections).to_yaml())
        return path

    return write


@pytest.mark.parametrize("name", OPTIONS)
def test_a_continued_run_equals_the_uninterrupted_one(configured, tmp_path, name):
    config = configured(name)
    whole = run(config, tmp_path / "whole")
    continued = run(config, tmp_path / "continued", "train.max_num_steps=2")
    run(config, continued)
    first, last = (final_state(folder) for folder in (whole, continued))
    assert first == last
    saved = [load_checkpoint(p) for p in list_checkpoints(whole / "checkpoints").values()]
    for which in ("model", "ema"):
        earlier, later = (state[which] for state in saved)
        added = ("perturbator", "enc_feat_embedder", "feat_embedder", "embedding_table")
        names = [n for n in later if any(part in n for part in added)]
        assert names and all(not torch.equal(earlier[n], later[n]) for n in names)


def test_a_trained_model_with_a_learned_perturbation_answers_without_it(configured, tmp_path):
    folder = run(configured("learned_and_fixed_perturbation"), tmp_path / "run")
    denoiser, _ = load_denoiser(folder / "checkpoints" / "0000004.pt")
    x, cond = torch.randn(2, 4, 4, 4), torch.randn(2, DIM)
    assert torch.equal(denoiser(x, 1.0, cond), denoiser(x, 1.0, cond))


def test_the_fixed_perturbation_comes_before_the_learned_one(configured):
    config = load_config(configured("learned_and_fixed_perturbation"), ["train.lr=1e-3"])
    y = torch.randn(200, DIM)
    cond = make_condition(y, config, BatchRandom(torch.Generator().manual_seed(0)))
    kept = cond.any(dim=1)
    assert 0 < (~kept).sum() < 60  # class_dropout_prob is 0.1
    torch.testing.assert_close(cond[kept].norm(dim=1), torch.ones(int(kept.sum())))
    assert not torch.allclose(cond[kept], torch.nn.functional.normalize(y)[kept], atol=0.1)


def test_the_learned_perturbation_alone_gets_the_embedding_itself(configured):
    config = load_config(configured("learned_type_and_self_cond"))
    y = torch.randn(50, DIM)
    cond = make_condition(y, config, BatchRandom(torch.Generator().manual_seed(0)))
    kept = cond.any(dim=1)
    torch.testing.assert_close(cond[kept], torch.nn.functional.normalize(y)[kept])


def test_external_features_are_neither_perturbed_nor_dropped(configured):
    config = load_config(configured("labels_and_external_features"))
    y = torch.randn(50, CLASSES + DIM)
    cond = make_condition(y, config, BatchRandom(torch.Generator().manual_seed(0)))
    assert torch.equal(cond[:, CLASSES:], y[:, CLASSES:])
    assert not cond[:, :CLASSES].any(dim=1).all()
