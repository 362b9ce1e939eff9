"""Print the tables of docs/scaling.md: counted FLOPs and memory, and the times they would take.

    python benchmarks/cost_model.py

FLOPs of a training step and of Muon are counted by torch.utils.flop_counter on meta tensors, which
need neither time nor memory. Hours on a GPU are estimates, at UTILISATION of its peak rate.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.timing import table
from benchmarks.train_step import Case, step_flops
from models.edm import EDMPrecond
from utils.config.command_line import HelpFormatter
from utils.config.load import load_config
from utils.training.optimizers import token_matrices
from utils.training.schedules import mask_ratio_after

CONFIGS = ROOT / "configs" / "main_config" / "train"
COMPARED = ("celeb_t2f_gaus1.2.yaml", "celeb_fast.yaml")  # those of FFHQ cost the same
PEAKS = {"A100": 312e12, "H100": 989e12}  # dense bf16 FLOP/s, by their data sheets
UTILISATION = 0.35  # fraction of the peak that is assumed
STEPS, BATCH = 300_000, 128  # of the published configs
BYTES_PER_WEIGHT = 4 * 5  # float32: weight, gradient, two moments of AdamW, average


def rows() -> Iterator[dict[str, Any]]:
    """Yield a row of the table for each network, latent side and mask ratio."""
    for size in ("S", "B", "L", "XL", "H"):
        for side, mask in ((32, 0.0), (32, 0.5), (32, 0.75), (64, 0.5)):
            case = Case(size, mask, decoder=mask > 0, batch=1, side=side)
            with torch.device("meta"):
                weights = sum(p.numel() for p in case.ours().parameters())
            flops = step_flops(case)
            hours = gpu_hours(STEPS * BATCH * flops)
            yield {
                "network": f"DiT-{size}/2",
                "pixels": side * 8,
                "mask": f"{mask:g}" + ("" if mask else ", no decoder"),
                "M weights": f"{weights / 1e6:.0f}",
                "GFLOP / image": flops / 1e9,
                "GB of states": weights * BYTES_PER_WEIGHT / 1e9,
                **hours,
            }


def gpu_hours(flops: float) -> dict[str, float]:
    """Return column -> hours that `flops` take on one device."""
    return {f"{name} hours": flops / (UTILISATION * p) / 3600 for name, p in PEAKS.items()}


def muon_flops(denoiser: EDMPrecond) -> int:
    """Count the FLOPs of one step of Muon on a network's matrices."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        weights = [torch.nn.Parameter(torch.empty_like(p)) for p in token_matrices(denoiser)]
        for weight in weights:
            weight.grad = torch.empty_like(weight)
        torch.optim.Muon(weights).step()
    return counter.get_total_flops()


def training_row(name: str) -> dict[str, Any]:
    """Return the table's row for a training's config: FLOPs of its steps, and its hours."""
    config = load_config(CONFIGS / name)
    model, train = config.model, config.train
    steps = train.max_num_steps
    assert steps is not None and model.use_decoder
    size = model.model_type.removeprefix("DiT-").removesuffix("/2")
    ratios = Counter(mask_ratio_after(step, steps, config) for step in range(steps))
    cases = {r: Case(size, r, batch=train.batchsize, side=model.in_size) for r in ratios}
    batches = {ratio: step_flops(case) for ratio, case in cases.items()}
    muon = 0
    if train.optimizer == "muon":
        with torch.device("meta"):
            muon = muon_flops(cases[model.mask_ratio].ours())
    return {
        "config": name,
        "steps": f"{steps:,}",
        "TFLOP of a masked batch": batches[model.mask_ratio] / 1e12,
        "of an unmasked one": batches[0.0] / 1e12 if 0.0 in batches else "none",
        "of Muon": muon / 1e12 if muon else "none",
        **gpu_hours(sum(n * (batches[ratio] + muon) for ratio, n in ratios.items())),
    }


def main() -> None:
    """Print both tables."""
    argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter).parse_args()
    print(table(rows()), table(map(training_row, COMPARED)), sep="\n\n")


if __name__ == "__main__":
    main()
