"""Observations of a training say what they measure, cost little, and change nothing."""

import pytest
import torch
from tiny import make_tiny_config
from trainings import final_state, metrics, run

from utils.training.observation import COST, steps_between

OBSERVED = {"ema_distance", "update_ratio", "update_ratio_adaln", "cond_gain", "guidance"}
OBSERVED |= {"cond_gain_shuffled"} | {
    f"val_loss{end}" for end in ("", "_1", "_2", "_3", "_4", "_ema")
}


@pytest.mark.parametrize("settings", [(), ("train.optimizer=muon", "train.grad_accum=1")])
def test_a_training_is_equal_bit_for_bit_with_and_without_observations(faces, tmp_path, settings):
    with_them = run(faces, tmp_path / "with", "log.observe_every=4", *settings)
    without = run(faces, tmp_path / "without", "log.observe_every=0", *settings)
    expected, state = final_state(without), final_state(with_them)
    assert {k: v for k, v in state.items() if "observe" not in k} == {
        k: v for k, v in expected.items() if "observe" not in k
    }
    plain = metrics(without)
    assert metrics(with_them) != plain
    assert [{k: v for k, v in m.items() if k in plain[0]} for m in metrics(with_them)] == plain


def test_they_stand_in_metrics_and_log(faces, tmp_path):
    folder = run(faces, tmp_path / "own", "log.observe_every=8")
    lines = {line["step"]: OBSERVED & line.keys() for line in metrics(folder)}
    assert lines == {4: set(), 8: OBSERVED, 12: OBSERVED}
    log = (folder / "log.txt").read_text()
    assert "held-out loss every 8 steps: 16 images of" in log
    assert "WARNING" not in log
    last = metrics(folder)[-1]
    levels = [last[f"val_loss_{number}"] for number in (1, 2, 3, 4)]
    assert last["val_loss"] == pytest.approx(sum(levels) / 4, rel=1e-5)
    assert 0 < last["update_ratio"] < 1
    assert 0 < last["ema_distance"] < 1


def test_without_test_latents_the_images_are_those_of_the_training_and_named_so(faces, tmp_path):
    folder = run(faces, tmp_path / "own", "log.observe_every=12", "eval.root=null")
    assert "seen_loss" in metrics(folder)[-1]
    assert "val_loss" not in metrics(folder)[-1]
    assert "training images" in (folder / "log.txt").read_text()


@pytest.mark.parametrize("batchsize", [8, 64, 1024])
def test_the_usual_interval_keeps_the_forward_passes_below_the_stated_cost(tmp_path, batchsize):
    config = make_tiny_config(tmp_path, train={"batchsize": batchsize}, log={"log_every": 50})
    steps = steps_between(config)
    assert steps % 50 == 0
    assert COST * steps * 3 * batchsize * (1 - config.model.mask_ratio) >= 4 * 64


def test_an_unconditional_training_and_a_class_of_images_are_observed(faces, tmp_path):
    folder = run(faces, tmp_path / "plain", "log.observe_every=12", "model.num_classes=0")
    assert "val_loss" in metrics(folder)[-1]
    assert "cond_gain" not in metrics(folder)[-1]
    assert torch.isfinite(torch.tensor(metrics(folder)[-1]["val_loss"]))
