"""Print the first table of docs/scaling.md: counted FLOPs and memory, and the time of a training.

    python benchmarks/cost_model.py

FLOPs of a training step are counted by torch.utils.flop_counter on meta tensors, which
need neither time nor memory. Hours on a GPU are estimates, at UTILISATION of its peak rate.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch

from benchmarks.timing import table
from benchmarks.train_step import Case, step_flops
from utils.config.command_line import ArgumentParser

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


def main() -> None:
    """Print the table."""
    ArgumentParser(description=__doc__).parse_args()
    print(table(rows()))


if __name__ == "__main__":
    main()
