"""Numerical guards: steps that are not finite change nothing; jumps of the loss are counted."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import DIM
from trainings import fresh_process, metrics

from train_latent_t2f import train
from utils.base.errors import DIVERGED
from utils.config.load import load_config
from utils.config.schema import Config
from utils.data.lmdb_writer import LMDBWriter
from utils.pretrained.checkpoint_files import load_checkpoint
from utils.training.checkpoint import list_checkpoints
from utils.training.step_guard import WARM_UP, StepGuard, skip_unless
from utils.training.step_window import Window

CPU = torch.device("cpu")


def judged(guard: StepGuard, *losses: float, grad_norm: float = 1.0) -> list[tuple[bool, bool]]:
    """Return (good, spike) of steps with these losses."""
    verdicts = [guard.judge(torch.tensor(float(x)), torch.tensor(grad_norm)) for x in losses]
    return [(bool(v.good), bool(v.spike)) for v in verdicts]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_step_is_bad_if_its_loss_or_its_gradient_is_not_finite(bad):
    guard = StepGuard(CPU)
    assert judged(guard, 1.0, bad) == [(True, False), (False, False)]
    assert judged(guard, 1.0, grad_norm=bad) == [(False, False)]
    assert guard.in_a_row() == 2
    judged(guard, 1.0)
    assert guard.in_a_row() == 0


def test_a_loss_far_above_the_ones_before_is_a_spike():
    guard, rng = StepGuard(CPU), np.random.default_rng(0)
    usual = judged(guard, *rng.normal(1, 0.1, 4 * WARM_UP))
    assert not any(spike for _, spike in usual)
    assert judged(guard, 1.4, 3.0, 1.0) == [(True, False), (True, True), (True, False)]


def test_a_loss_of_the_first_steps_is_no_spike():
    assert judged(StepGuard(CPU), 1.0, 1.0, 50.0)[-1] == (True, False)


def test_a_guard_goes_on_from_its_saved_state():
    rng = np.random.default_rng(0)
    losses = rng.normal(1, 0.1, 2 * WARM_UP)
    whole, first, second = (StepGuard(CPU) for _ in range(3))
    judged(whole, *losses)
    judged(first, *losses[:70])
    second.load(first.state())
    judged(second, *losses[70:])
    assert second.state() == whole.state()


@pytest.mark.parametrize("good", [True, False])
def test_a_bad_step_changes_neither_weights_nor_moments(good):
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([weight], lr=0.1, fused=True)
    weight.grad = torch.ones(3)
    optimizer.step()
    before = [weight.detach().clone(), *(v.clone() for v in optimizer.state[weight].values())]
    weight.grad = torch.full((3,), 1.0 if good else math.nan)
    skip_unless(torch.tensor(good), optimizer)
    optimizer.step()
    after = [weight.detach(), *optimizer.state[weight].values()]
    assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True)) != good


def test_bad_steps_are_counted_and_left_out_of_the_means():
    window, guard = Window(CPU), StepGuard(CPU)
    for loss in (1.0, math.nan, 2.0):
        value, norm = torch.tensor(loss), torch.tensor(4.0)
        window.add(value, norm, guard.judge(value, norm))
    assert window.means() == {"loss": 1.5, "grad_norm": 4.0, "skipped": 1, "spikes": 0}
    window.reset()
    window.add(value * math.nan, norm, guard.judge(value * math.nan, norm))
    assert window.means() == {"skipped": 1, "spikes": 0}


def with_damaged(config_path: Path, tmp_path: Path, damaged: int, *settings: str) -> Config:
    """Write a training set in which `damaged` of 40 latents are NaN; return its config."""
    latents = np.random.default_rng(0).normal(size=(40, 4, 8, 8))
    latents[:damaged] = np.nan
    with LMDBWriter(tmp_path / "z", "z", {}, 40) as writer:
        writer.append(latents)
    with LMDBWriter(tmp_path / "y", "y", {}, 40) as writer:
        writer.append(np.ones((40, 1, DIM)))
    paths = (f"data.root={tmp_path / 'z'}", f"data.feat_path={tmp_path / 'y'}")
    limits = ("log.ckpt_every=4", "train.max_bad_steps=6")
    return load_config(config_path, (*paths, *limits, *settings))


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_damaged_image_costs_its_steps_only(faces, tmp_path, optimizer):
    config = with_damaged(faces, tmp_path, 1, f"train.optimizer={optimizer}")
    with fresh_process():
        assert train(config, tmp_path / "run", None, False) == 0
    lines = metrics(tmp_path / "run")
    assert sum(line["skipped"] for line in lines) in (
        2,
        3,
    )  # twelve steps are between two and three epochs
    assert all(math.isfinite(line["loss"]) for line in lines)
    assert "SKIPPED" in (tmp_path / "run" / "log.txt").read_text()
    states = load_checkpoint(tmp_path / "run" / "checkpoints" / "0000012.pt")["opt"]["state"]
    assert all(value.isfinite().all() for state in states.values() for value in state.values())


def test_a_training_without_a_good_step_stops_and_says_what_to_try(faces, tmp_path):
    config = with_damaged(faces, tmp_path, damaged=40)
    with fresh_process():
        assert train(config, tmp_path / "run", None, False) == DIVERGED
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "diverged: 8 steps in a row" in log and "train.grad_clip=1" in log
    assert list(list_checkpoints(tmp_path / "run" / "checkpoints")) == [4]
