"""Time the training's own step beside that of a plain network (benchmarks/plain_network.py).

    python benchmarks/train_step.py --out docs/benchmarks/train_step.json
    python benchmarks/train_step.py --sizes L --batch 4 --variants float32,autocast,ours

A step is forward, loss, backward, optimizer and weight average, on 32x32x4 latents with conditions
of 512 numbers. Ours is `train_step` of utils/training. Each variant has a process of its own; they
alternate on the same cores. Before that, both networks get equal weights and random numbers, and
their losses must agree.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.plain_network import PlainMaskDiT, PlainTraining
from benchmarks.timing import add_arguments, compare, matmul_rate, report, start
from models.backbones import MODEL_SIZES
from models.edm import EDMPrecond, build_denoiser, edm_loss, random_for_loss
from utils.config.command_line import ArgumentParser
from utils.config.load import config_from_dict
from utils.training.batches import Batch
from utils.training.distributed import Processes
from utils.training.state import TrainingState
from utils.training.train_step import train_step

VARIANTS = {
    "float32": "plain, eager, float32",
    "autocast": "plain, eager, bf16 autocast",
    "eager": "ours, not compiled, bf16 autocast",
    "ours": "ours, compiled, bf16 autocast",
}
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@dataclass(frozen=True)
class Case:
    """One training to time: a size of MODEL_SIZES (S, B, L, XL), with or without the decoder."""

    size: str
    mask_ratio: float
    decoder: bool = True
    batch: int = 16
    side: int = 32  # of the latents
    mae_loss_coef: float = 0.1

    def data(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return latents (N, 4, side, side) and conditions (N, 512)."""
        generator = torch.Generator().manual_seed(0)
        latents = 0.5 * torch.randn(self.batch, 4, self.side, self.side, generator=generator)
        cond = torch.randn(self.batch, 512, generator=generator)
        return latents.to(DEVICE), cond.to(DEVICE)

    def ours(self) -> EDMPrecond:
        """Build our network."""
        torch.manual_seed(0)
        name = f"DiT-{self.size}/2"
        return build_denoiser(name, self.side, 4, 512, use_decoder=self.decoder).train()

    def loss(self, denoiser: EDMPrecond, latents: torch.Tensor, cond: torch.Tensor) -> torch.Tensor:
        """Compute the loss of each image with random numbers of the default generator, (N,)."""
        random = random_for_loss(denoiser, latents, cond, self.mask_ratio)
        return edm_loss(denoiser, latents, cond, random, mae_loss_coef=self.mae_loss_coef)

    def plain(self) -> PlainMaskDiT:
        """Build the plain network."""
        torch.manual_seed(0)
        depth, width, _, heads, _ = MODEL_SIZES[f"DiT-{self.size}/2"]
        return PlainMaskDiT(self.side, depth, width, heads, self.decoder)


def plain_step(case: Case, kind: str) -> Callable[[], float]:
    """Return a step of the baseline; `kind` is one of VARIANTS."""
    torch.manual_seed(0)
    training = PlainTraining(case.plain().to(DEVICE), autocast=kind != "float32")
    data = case.data()
    return lambda: training.step(*data, case.mask_ratio)


def our_step(case: Case, compiled: bool) -> Callable[[], object]:
    """Return the training's own step, on one batch that is there already."""
    config = config_from_dict(
        {
            "model": {
                "model_type": f"DiT-{case.size}/2",
                "in_size": case.side,
                "use_decoder": case.decoder,
                "mask_ratio": case.mask_ratio,
                "mae_loss_coef": case.mae_loss_coef,
                "class_dropout_prob": 0.0,
            },
            "train": {
                "batchsize": case.batch,
                "amp": "bf16",
                "compile": compiled,
                "max_num_steps": 1_000_000,
            },
        },
        "benchmark",
    )
    state = TrainingState(config, Processes(config), images=case.batch)
    state.make_ready()
    batches = itertools.repeat(Batch(*case.data()))
    return lambda: train_step(state, batches)


def setup(case: Case, kind: str) -> Callable[[], object]:
    """Return the step of one of VARIANTS."""
    if kind in ("ours", "eager"):
        return our_step(case, compiled=kind == "ours")
    return plain_step(case, kind)


def step_flops(case: Case) -> int:
    """Count the FLOPs of forward and backward, without computing them."""
    with torch.device("meta"):
        denoiser = case.ours()
        latents, cond = torch.empty(1, 4, case.side, case.side), torch.empty(1, 512)
        with FlopCounterMode(display=False) as counter:
            case.loss(denoiser, latents, cond).sum().backward()
    return case.batch * counter.get_total_flops()


def largest_loss_difference(case: Case) -> float:
    """Return |ours - plain| / plain of the float32 loss, with equal weights and random numbers."""
    denoiser, plain = case.ours().to(DEVICE), case.plain().to(DEVICE)
    latents, cond = case.data()
    with torch.no_grad():
        for weight in denoiser.parameters():
            if weight.requires_grad:  # fresh ones are zero in places, which would hide faults
                weight.normal_(std=0.1)
        plain.load_state_dict(denoiser.model.state_dict())
    training = PlainTraining(plain, autocast=False)
    torch.manual_seed(1)
    with torch.no_grad():
        ours = case.loss(denoiser, latents, cond).mean().item()
    torch.manual_seed(1)
    theirs = training.step(latents, cond, case.mask_ratio)
    return abs(ours - theirs) / theirs


def measure(
    case: Case, kinds: list[str], repeats: int, rounds: int, rates: dict[str, float]
) -> list[dict]:
    """Time the variants, one in memory at a time, and return a row for each."""
    setups = {kind: partial(setup, case, kind) for kind in kinds}
    timings = compare(setups, repeats, warmup=2, rounds=rounds)
    flops, rows = step_flops(case), []
    for kind, timing in timings.items():
        achieved = flops / timing.median
        rate = rates["float32" if kind == "float32" else "bf16"]
        row = {
            "network": f"DiT-{case.size}/2" + ("" if case.decoder else ", no decoder"),
            "latents": f"{case.side}x{case.side}",
            "mask": str(case.mask_ratio),
            "batch": case.batch,
            "variant": VARIANTS[kind],
            "images/s": case.batch / timing.median,
            "peak GB": timing.peak / 1e9,
            "GFLOP/s": achieved / 1e9,
            "of the matrix rate": f"{achieved / rate:.0%}",
        }
        for base in ("float32", "autocast"):
            if base in timings:
                row[f"x plain {base}"] = f"{timings[base].median / timing.median:.2f}"
        rows.append(row)
    return rows


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", default="S,B", help="of the network: S, B, L, XL")
    parser.add_argument("--masks", default="0.5", help="mask ratios")
    parser.add_argument("--batch", default="16", help="batch sizes")
    parser.add_argument("--sides", default="32", help="sides of the latents: 32, 64")
    parser.add_argument("--decoders", default="yes", help="yes, no, or both: yes,no")
    parser.add_argument("--variants", default=",".join(VARIANTS), help="variants to compare")
    parser.add_argument(
        "--rounds", type=int, default=2, help="rounds; in each, all variants start anew"
    )
    parser.add_argument("--title", default="Training step", help="of the table")
    add_arguments(parser)
    return parser.parse_args()


def main() -> None:
    """Time all cases and write the table."""
    args = parse_args()
    start(args)
    kinds = args.variants.split(",")
    small = Case("S", 0.5, batch=2)
    worst = max(largest_loss_difference(replace(small, mask_ratio=r)) for r in (0.0, 0.5))
    rates = {"float32": matmul_rate(torch.float32), "bf16": matmul_rate(torch.bfloat16)}
    rows = []
    cases = itertools.product(
        args.sizes.split(","),
        map(int, args.sides.split(",")),
        [decoder == "yes" for decoder in args.decoders.split(",")],
        map(float, args.masks.split(",")),
        map(int, args.batch.split(",")),
    )
    for size, side, decoder, mask, batch in cases:
        case = Case(size, mask, decoder, batch, side)
        rows += measure(case, kinds, args.repeats, args.rounds, rates)
        print(rows[-1], flush=True)
    rates_note = " and ".join(f"{rate / 1e9:.0f} in {name}" for name, rate in rates.items())
    notes = [
        f"GFLOP/s of matrix products of 2048 x 2048 here: {rates_note}.",
        "From equal weights and random numbers the losses of both networks differ by "
        f"{worst:.0e} at most.",
        "FLOPs are counted by torch.utils.flop_counter; peak memory is that of the whole process.",
    ]
    report(args.out, args.title, rows, notes)


if __name__ == "__main__":
    main()
