"""Two processes with shards train the adapter that one process trains."""

import pytest
import torch
from training_runs import start_ranks
from trainings import metrics, run

from utils.pretrained.checkpoint_files import load_checkpoint

pytestmark = pytest.mark.e2e
SHORT = (
    "train.max_num_steps=4",
    "train.grad_accum=1",
    "log.ckpt_every=4",
    "log.log_every=2",
    "log.observe_every=0",
)


def test_two_processes_with_shards_train_the_adapter_of_one(faces, tmp_path):
    base = run(faces, tmp_path / "base", *SHORT) / "checkpoints" / "0000004.pt"
    adapter = (*SHORT, "train.adapt=lora+condition", "train.lr=1e-2", "train.ema_decay=0.5")
    whole = run(faces, tmp_path / "whole", *adapter, start_from=base)
    folder, begin = tmp_path / "both", ("--ckpt_path", str(base))
    ranks = start_ranks(faces, folder, *begin, *adapter, "train.shard=true")
    assert [rank.wait() for rank in ranks] == [0, 0], ranks[0].said()
    for one, both in zip(metrics(whole), metrics(folder), strict=True):
        assert both == pytest.approx(one, rel=1e-3)
    here, there = (load_checkpoint(f / "checkpoints/0000004.pt") for f in (folder, whole))
    assert here["base"] == there["base"]
    for name, tensor in here["ema"].items():
        torch.testing.assert_close(tensor, there["ema"][name], rtol=0.02, atol=2e-3)
