"""Muon in one process and in several: what a step costs, and whether the losses stay equal.

    python benchmarks/muon_processes.py                            # the demo's network
    python benchmarks/muon_processes.py --size DiT-S/2 --processes 1,2,4 --steps 50

Each process computes its slice of the same global batches on one thread (gloo). Processor seconds
of the optimizer are those of one process, without its waiting for others: what Muon costs it.
Half of the tokens are hidden; latents and conditions are random.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from benchmarks.timing import machine, table
from models.batch_random import RankSlice
from models.edm import EDMPrecond, build_denoiser, edm_loss, random_for_loss
from utils.config.command_line import ArgumentParser
from utils.config.sections import Train
from utils.training.optimizers import build_optimizer
from utils.training.sharding import host_copy, shard_training

MUON = Train(optimizer="muon", lr=1e-3, muon_lr=5e-3, weight_decay=0.01)


@dataclass(frozen=True)
class Case:
    """A training: `processes` with whole or sharded weights.

    stop_at: step at which the training stops and goes on from its saved state; None = it does not.
    width: of a network of two blocks in place of that of `size`.
    """

    size: str
    processes: int
    sharded: bool
    steps: int
    batch: int = 8
    stop_at: int | None = None
    width: int | None = None


def new_training(case: Case, saved: dict | None) -> tuple[EDMPrecond, torch.optim.Optimizer]:
    """Build network and optimizer: fresh, or those of a saved state."""
    torch.manual_seed(0)
    options: dict[str, Any] = {"use_decoder": False}
    if case.width:
        options |= {"depth": 2, "num_heads": 2, "hidden_size": case.width}
    network = build_denoiser(case.size, 16, 4, 16, **options)
    optimizer = build_optimizer(network, MUON)
    if saved is not None:
        network.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["opt"])
    if case.sharded:
        _, optimizer = shard_training(network, [], optimizer, MUON)
    return network, optimizer


def average_gradients(network: nn.Module) -> None:
    """Average the gradients of all processes, as DistributedDataParallel does."""
    for parameter in network.parameters():
        if parameter.grad is not None:
            dist.all_reduce(parameter.grad)
            parameter.grad /= dist.get_world_size()


def train_rank(rank: int, case: Case, port: int, out: str) -> None:
    """Train as one of the processes; the first one writes losses and seconds to `out`."""
    torch.set_num_threads(1)
    if case.processes > 1 or case.sharded:
        os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
        dist.init_process_group("gloo", rank=rank, world_size=case.processes)
    network, optimizer = new_training(case, None)
    count = case.batch // case.processes
    mine = slice(rank * count, (rank + 1) * count)
    generator = torch.Generator().manual_seed(5)
    latents = torch.randn(64, 4, 16, 16, generator=generator)
    cond = torch.randn(64, 16, generator=generator)
    seconds, losses = [], []
    for step in range(case.steps):
        if step == case.stop_at:
            saved = {"model": host_copy(network.state_dict()), "opt": optimizer.state_dict()}
            network, optimizer = new_training(case, {**saved, "opt": host_copy(saved["opt"])})
        begun, chosen = time.perf_counter(), torch.randint(64, (case.batch,), generator=generator)
        x, y = latents[chosen][mine], cond[chosen][mine]
        rng = RankSlice(mine.start, count, case.batch).random(generator)
        loss = edm_loss(network, x, y, random_for_loss(network, x, y, 0.5, rng)).mean()
        loss.backward()
        if case.processes > 1 and not case.sharded:
            average_gradients(network)
        computed = time.process_time()
        optimizer.step()
        seconds.append((time.perf_counter() - begun, time.process_time() - computed))
        optimizer.zero_grad()
        total = loss.detach() / case.processes
        if dist.is_initialized():
            dist.all_reduce(total)
        losses.append(float(total))
    if rank == 0:
        torch.save({"losses": losses, "seconds": seconds}, out)
    if dist.is_initialized():
        dist.destroy_process_group()


def trained(case: Case) -> tuple[list[float], np.ndarray]:
    """Train a case in new processes; return its losses, and the seconds (steps, 2)."""
    with tempfile.TemporaryDirectory() as folder:
        out = f"{folder}/result.pt"
        port = 20_000 + os.getpid() % 20_000
        mp.start_processes(train_rank, (case, port, out), case.processes, start_method="fork")
        result = torch.load(out)
    return result["losses"], np.array(result["seconds"])


def main() -> None:
    """Print a row for each number of processes, whole and sharded."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--size", default="DiT-T/2", help="of the network")
    parser.add_argument("--processes", default="1,2,4", help="numbers of processes")
    parser.add_argument("--steps", type=int, default=50, help="of each training")
    parser.add_argument("--batch", type=int, default=8, help="images of all processes together")
    args = parser.parse_args()
    rows, expected = [], None
    for processes in map(int, args.processes.split(",")):
        for sharded in (False, True)[: 1 + (processes > 1)]:
            case = Case(args.size, processes, sharded, args.steps, args.batch)
            losses, seconds = trained(case)
            expected = expected or losses
            step, optimizer = np.median(seconds, axis=0)
            difference = max(abs(a - b) for a, b in zip(losses, expected, strict=True))
            rows.append(
                {
                    "processes": processes,
                    "weights": "sharded" if sharded else "whole",
                    "s a step": f"{step:.3f}",
                    "processor s of the optimizer, each": f"{optimizer:.3f}",
                    "largest difference of a loss": f"{difference:.1e}",
                }
            )
    print(f"{args.size}, {args.batch} images a step; {machine()}\n\n{table(rows)}")


if __name__ == "__main__":
    main()
