"""Write the tables of docs/scaling.md: counted FLOPs and memory, and the times they would take.

    python benchmarks/cost_model.py

FLOPs of a training step are counted by torch.utils.flop_counter on meta tensors, which need neither
time nor memory. Hours on a GPU are estimates, at a stated share of its peak rate.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch

from benchmarks.timing import table
from benchmarks.train_step import Case, step_flops
from utils.config.command_line import HelpFormatter

PAGE = ROOT / "docs" / "scaling.md"
BEGIN, END = "<!-- written by benchmarks/cost_model.py -->", "<!-- end -->"
PEAKS = {"A100": 312e12, "H100": 989e12}  # dense bf16 FLOP/s, by their data sheets
UTILISATION = 0.35  # share of the peak that is assumed
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
            hours = {
                name: STEPS * BATCH * flops / (UTILISATION * peak) / 3600
                for name, peak in PEAKS.items()
            }
            yield {
                "network": f"DiT-{size}/2",
                "pixels": side * 8,
                "mask": f"{mask:g}" + ("" if mask else ", no decoder"),
                "M weights": f"{weights / 1e6:.0f}",
                "GFLOP / image": flops / 1e9,
                "GB of states": weights * BYTES_PER_WEIGHT / 1e9,
                "A100 hours": hours["A100"],
                "H100 hours": hours["H100"],
            }


def main() -> None:
    """Replace the table on the page."""
    argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter).parse_args()
    page = PAGE.read_text()
    before, rest = page.split(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n\n{table(rows())}\n\n{END}{rest.split(END)[1]}")
    print(f"{PAGE.relative_to(ROOT)} written")


if __name__ == "__main__":
    main()
