"""Trainings that align tokens, in two processes: whole networks or shards, killed and resumed."""

import signal
from pathlib import Path

import pytest
import torch
from aligned import make_aligned_config
from harness import seeded
from training_runs import SETTINGS, STEPS, interrupt, outcome, start, start_ranks
from trainings import FEW_BLOCKS, metrics, run

from utils.pretrained.checkpoint_files import load_checkpoint
from utils.training.checkpoint import list_checkpoints

pytestmark = pytest.mark.e2e
LAST = f"checkpoints/{STEPS:07d}.pt"


@pytest.fixture(scope="module")
def aligned(faces) -> Path:
    """Return the config file of a training that aligns in 60 % of its steps."""
    return make_aligned_config(faces)


@pytest.fixture(scope="module")
def whole(aligned) -> Path:
    """Return the folder of the same training in one process."""
    return run(aligned, aligned.parent / "whole", *SETTINGS)


@pytest.mark.parametrize("more", [(), ("model.unmasked_tail=0",), ("train.shard=true",)])
def test_two_processes_train_like_one(aligned, whole, tmp_path, more):
    if "model.unmasked_tail=0" in more:  # then they do not search for unused weights
        whole = run(aligned, tmp_path / "whole", *SETTINGS, *more)
    folder = tmp_path / "two"
    ranks = start_ranks(aligned, folder, *more)
    ranks[0].wait_until(lambda: list_checkpoints(folder / "checkpoints"))
    interrupt(ranks, folder, seeded("aligned"), signal.SIGKILL, within=0.1)
    assert [rank.wait() for rank in start_ranks(aligned, folder, *more)] == [0, 0]
    for one, two in zip(metrics(whole), metrics(folder), strict=True):
        assert two == pytest.approx(one, rel=1e-3)
    assert "alignment" in metrics(folder)[0] and "alignment" not in metrics(folder)[-1]
    state, expected = load_checkpoint(folder / LAST), load_checkpoint(whole / LAST)
    for name in ("model", "ema", "head"):
        assert state[name].keys() == expected[name].keys()
        for key, tensor in state[name].items():
            torch.testing.assert_close(tensor, expected[name][key], rtol=0.02, atol=2e-3)


def test_a_compiled_training_is_killed_and_goes_on_bit_for_bit(aligned, tmp_path):
    short = ("train.max_num_steps=16", "train.batchsize=4", *FEW_BLOCKS)
    compiled = (*short, "train.compile=auto")
    outcomes = []
    for name in ("whole", "killed"):
        folder = tmp_path / name
        training = start(aligned, folder, *compiled)
        if name == "killed":
            training.wait_until(lambda at=folder: list_checkpoints(at / "checkpoints"))
            interrupt([training], folder, seeded(name), signal.SIGKILL, within=0.1)
            training = start(aligned, folder, *compiled)
        assert training.wait() == 0, training.said()
        outcomes.append(outcome(folder))
    assert outcomes[0] == outcomes[1]
    plain = run(aligned, tmp_path / "plain", *SETTINGS, *short)
    for one, other in zip(metrics(plain), metrics(tmp_path / "whole"), strict=True):
        assert other == pytest.approx(one, rel=2e-2)
