"""Networks sharded over the processes (FSDP) train like one, and any process reads their files."""

import signal
from pathlib import Path

import pytest
import torch
from harness import seeded
from tiny import DIM
from training_runs import SETTINGS, STEPS, interrupt, start_ranks
from trainings import metrics, run

from models.samplers import SamplerSettings, guided, sample
from utils.pretrained.checkpoint_files import load_checkpoint
from utils.pretrained.denoisers import load_denoiser
from utils.training.checkpoint import list_checkpoints

pytestmark = pytest.mark.e2e
SHARD = "train.shard=true"
AVERAGES = "train.power_ema=[0.05,0.1]"
MUON = "train.optimizer=muon"


def shapes(value: dict) -> dict:
    """Return name -> shape of tensors."""
    return {name: tensor.shape for name, tensor in value.items()}


def near(line: dict) -> dict:
    """Return what a line of metrics is compared with; sizes of updates vary by Muon's bfloat16."""
    tolerances = {name: 1e-2 if name.startswith("update_ratio") else 1e-3 for name in line}
    return {name: pytest.approx(value, rel=tolerances[name]) for name, value in line.items()}


@torch.inference_mode()
def generated_by(checkpoint: Path) -> torch.Tensor:
    """Sample latents (2, 4, 8, 8) from a checkpoint in one process, with guidance."""
    denoiser, _ = load_denoiser(checkpoint)
    generator = torch.Generator().manual_seed(0)
    noise, cond = (torch.randn(2, *size, generator=generator) for size in ((4, 8, 8), (DIM,)))
    return sample(guided(denoiser, cond, 1.5), noise, SamplerSettings("dpmpp_2m", 4))


def test_a_sharded_training_equals_one_process_and_its_checkpoint_goes_on_alone(faces, tmp_path):
    rng, folder = seeded("sharded"), tmp_path / "sharded"
    whole = run(faces, tmp_path / "whole", *SETTINGS, AVERAGES, MUON)
    ranks = start_ranks(faces, folder, SHARD, AVERAGES, MUON)
    ranks[0].wait_until(lambda: list_checkpoints(folder / "checkpoints"))
    interrupt(ranks, folder, rng, signal.SIGKILL, within=0.1)
    more = (AVERAGES, MUON, "log.sample_every=25", "log.num_samples=2", "train.compile=auto")
    assert [rank.wait() for rank in start_ranks(faces, folder, SHARD, *more)] == [0, 0]
    assert (folder / "samples" / f"{STEPS:07d}.png").exists()
    assert "sharded" in (folder / "log.txt").read_text()
    for one, both in zip(metrics(whole), metrics(folder), strict=True):
        assert both == near(one)
    last = f"checkpoints/{STEPS:07d}.pt"
    state, expected = load_checkpoint(folder / last), load_checkpoint(whole / last)
    assert state["power_ema"]["steps"] == expected["power_ema"]["steps"] == STEPS
    averages = zip(state["power_ema"]["weights"], expected["power_ema"]["weights"], strict=True)
    for here, there in [*((state[n], expected[n]) for n in ("model", "ema")), *averages]:
        assert shapes(here) == shapes(there)
        for key, tensor in here.items():
            # Muon rounds to bfloat16, and 50 steps change weights by 0.05.
            torch.testing.assert_close(tensor, there[key], rtol=0.02, atol=0.01)
    torch.testing.assert_close(
        generated_by(folder / last), generated_by(whole / last), rtol=0, atol=0.05
    )
    longer = f"train.max_num_steps={STEPS + 4}"
    for done in (folder, whole):
        run(faces, done, *SETTINGS, longer, MUON)
    assert metrics(folder)[-1] == near(metrics(whole)[-1])
