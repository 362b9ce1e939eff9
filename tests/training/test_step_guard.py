"""Numerical guards: steps that are not finite change nothing; jumps of the loss are counted."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from small_databases import spoil
from tiny import DIM, make_overflowing, make_tiny_vae
from trainings import fresh_process, metrics

from train_latent_t2f import train
from utils.base.errors import DIVERGED, UserError
from utils.config.load import load_config
from utils.config.schema import Config
from utils.data.lmdb_writer import LMDBWriter
from utils.pretrained.checkpoint_files import load_checkpoint
from utils.training.batches import DataOrder
from utils.training.checkpoint import list_checkpoints
from utils.training.step_guard import WARM_UP, StepGuard, skip_unless
from utils.training.step_window import Window

CPU = torch.device("cpu")


def evaluated(guard: StepGuard, *losses: float, grad_norm: float = 1.0) -> list[tuple[bool, bool]]:
    """Return (good, spike) of steps with these losses."""
    verdicts = [guard.check(torch.tensor(float(x)), torch.tensor(grad_norm)) for x in losses]
    return [(bool(v.good), bool(v.spike)) for v in verdicts]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_step_is_bad_if_its_loss_or_its_gradient_is_not_finite(bad):
    guard = StepGuard(CPU)
    assert evaluated(guard, 1.0, bad) == [(True, False), (False, False)]
    assert evaluated(guard, 1.0, grad_norm=bad) == [(False, False)]
    assert guard.in_a_row() == 2
    evaluated(guard, 1.0)
    assert guard.in_a_row() == 0


def test_a_loss_far_above_the_ones_before_is_a_spike():
    guard, rng = StepGuard(CPU), np.random.default_rng(0)
    usual = evaluated(guard, *rng.normal(1, 0.1, 4 * WARM_UP))
    assert not any(spike for _, spike in usual)
    assert evaluated(guard, 1.4, 3.0, 1.0) == [(True, False), (True, True), (True, False)]


def test_a_loss_of_the_first_steps_is_no_spike():
    assert evaluated(StepGuard(CPU), 1.0, 1.0, 50.0)[-1] == (True, False)


def test_a_guard_goes_on_from_its_saved_state():
    rng = np.random.default_rng(0)
    losses = rng.normal(1, 0.1, 2 * WARM_UP)
    whole, first, second = (StepGuard(CPU) for _ in range(3))
    evaluated(whole, *losses)
    evaluated(first, *losses[:70])
    second.load(first.state())
    evaluated(second, *losses[70:])
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
        window.add(value, norm, guard.check(value, norm))
    assert window.means() == {"loss": 1.5, "grad_norm": 4.0, "skipped": 1, "spikes": 0}
    window.reset()
    window.add(value * math.nan, norm, guard.check(value * math.nan, norm))
    assert window.means() == {"skipped": 1, "spikes": 0}


def with_damaged(config_path: Path, tmp_path: Path, damaged: int, *settings: str) -> Config:
    """Write a training set in which `damaged` of 40 latents are NaN; return its config."""
    latents = np.random.default_rng(0).normal(size=(40, 4, 8, 8))
    with LMDBWriter(tmp_path / "z", "z", {}, 40) as writer:
        writer.append(latents)
    with LMDBWriter(tmp_path / "y", "y", {}, 40) as writer:
        writer.append(np.ones((40, 1, DIM)))
    spoil(tmp_path / "z", *(f"z-{i}" for i in range(damaged)))
    paths = (f"data.root={tmp_path / 'z'}", f"data.feat_path={tmp_path / 'y'}")
    limits = ("log.ckpt_every=4", "train.max_bad_steps=6")
    return load_config(config_path, (*paths, *limits, *settings))


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_damaged_image_costs_its_steps_only(faces, tmp_path, optimizer, capfd):
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
    (said,) = [line for line in capfd.readouterr().err.splitlines() if "NaN" in line]
    assert "/z: sample 0 holds NaN" in said and "encoders.precision" in said
    states = load_checkpoint(tmp_path / "run" / "checkpoints" / "0000012.pt")["opt"]["state"]
    assert all(value.isfinite().all() for state in states.values() for value in state.values())


@pytest.mark.parametrize("in_memory", [True, False])
def test_a_database_of_which_most_samples_are_not_finite_is_refused_before_the_training(
    faces, tmp_path, in_memory, monkeypatch
):
    monkeypatch.setattr("utils.data.latent_dataset.MOST_RAM", float(in_memory))
    config = with_damaged(faces, tmp_path, 21)
    with fresh_process(), pytest.raises(UserError) as refused:
        train(config, tmp_path / "run", None, False)
    assert "/z: sample 0 holds NaN" in str(refused.value)
    assert "encoders.precision" in str(refused.value) and "(21 of 40 samples)" in str(refused.value)
    assert not (tmp_path / "run").exists()


def test_a_training_without_a_good_step_stops_and_says_what_to_try(faces, tmp_path):
    settings = ("train.lr=1e30", "log.keep_last=1", "train.max_num_steps=14")
    config = with_damaged(faces, tmp_path, 0, *settings)
    run, saved = tmp_path / "run", tmp_path / "run" / "checkpoints" / "0000008.pt"
    with fresh_process():
        assert train(config, run, None, False) == DIVERGED
    log = (run / "log.txt").read_text()
    assert "diverged: 7 steps in a row" in log and "train.grad_clip=1" in log
    assert f"{saved} holds the weights of the last good step" in log and str(saved) in log
    # The one before stays too, as weights may have been on their way out for long.
    assert list(list_checkpoints(run / "checkpoints")) == [4, 8]
    assert load_checkpoint(saved)["step"] == 8


def test_a_diverged_training_loses_no_good_step(faces, tmp_path):
    settings = ("log.ckpt_every=100", "log.log_every=1", "model.unmasked_tail=0")
    config = with_damaged(faces, tmp_path, 0, *settings, "train.max_bad_steps=2")
    # The first three batches are good, and the next two are not.
    bad = DataOrder(40, config.train.seed).indices(24, 16).tolist()
    spoil(config.data.root, *(f"z-{i}" for i in bad))
    for steps, code in ((3, 0), (12, DIVERGED)):
        train_options = config.train.model_copy(update={"max_num_steps": steps})
        one = config.model_copy(update={"train": train_options})
        with fresh_process():
            assert train(one, tmp_path / f"run{steps}", None, False) == code
    good, last = (
        load_checkpoint(tmp_path / run / "checkpoints" / file)["model"]
        for run, file in (("run3", "0000003.pt"), ("run12", "0000005.pt"))
    )
    assert all(torch.equal(good[name], last[name]) for name in good)
    log = (tmp_path / "run12" / "log.txt").read_text()
    assert "Mend the data first" in log and "0000005.pt holds the weights of the last good" in log


def test_weights_that_overflow_are_not_saved(faces, tmp_path):
    config = with_damaged(faces, tmp_path, 0, "train.lr=1e39", "log.ckpt_every=2")
    with fresh_process():
        assert train(config, tmp_path / "run", None, False) == DIVERGED
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "weights have become NaN or infinite, and are not saved" in log
    assert list(list_checkpoints(tmp_path / "run" / "checkpoints")) == []


def test_a_sample_grid_that_is_not_finite_stops_no_training(faces, tmp_path):
    vae = make_tiny_vae(tmp_path / "vae")
    make_overflowing(vae, 3e38)
    settings = ("sampling.num_steps=2", "log.sample_every=6", "log.num_samples=2")
    config = load_config(faces, (*settings, f"encoders.vae={vae}"))
    with fresh_process():
        assert train(config, tmp_path / "run", None, False) == 0
    log = (tmp_path / "run" / "log.txt").read_text()
    assert log.count("WARNING: no samples/") == 2 and "encoders.precision" in log
    assert not list((tmp_path / "run").glob("samples/*"))
    assert list(list_checkpoints(tmp_path / "run" / "checkpoints")) == [6, 12]


@pytest.mark.parametrize("amp", ["no", "bf16", "fp16"])
def test_every_precision_of_a_training_works_on_a_cpu(faces, tmp_path, amp):
    settings = (f"train.amp={amp}", "train.max_num_steps=4", "log.sample_every=4")
    config = load_config(faces, (*settings, "sampling.num_steps=2", "encoders.precision=fp16"))
    with fresh_process():
        assert train(config, tmp_path / "run", None, False) == 0
    (line,) = metrics(tmp_path / "run")
    assert math.isfinite(line["loss"]) and line["skipped"] == 0
    assert (tmp_path / "run" / "samples" / "0000004.png").exists()
