"""Time the demo's trained network with numbers below 1e-38 kept, and taken as zero as scripts do.

    python benchmarks/denormals.py --threads 1 --out docs/benchmarks/denormals.json

Both take turns in one process, in processor seconds. Raises an error if their outputs differ.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

# First: from here on, Ctrl-C ends the script with one line.
from utils.base.script import one_line_errors

# isort: split
import torch
from torch import Tensor

from benchmarks.timing import add_arguments, report, start
from models.edm import EDMPrecond
from utils.config.command_line import ArgumentParser
from utils.pretrained.denoisers import load_denoiser

BATCH = 32
CHECKPOINT = Path("assets/demo/dit.safetensors")


def alternated(work: Callable[[], Tensor], repeats: int) -> tuple[float, float]:
    """Return the least processor seconds of `work`: with these numbers kept, and as zeros."""
    least, outputs = [float("inf")] * 2, []
    for repeat in range(2 * repeats):
        flushed = repeat % 2
        torch.set_flush_denormal(bool(flushed))
        begun = time.process_time()
        outputs.append(work())
        least[flushed] = min(least[flushed], time.process_time() - begun)
    if not all(torch.equal(outputs[0], other) for other in outputs):
        raise AssertionError("the outputs differ")
    return least[0], least[1]


def evaluation(denoiser: EDMPrecond, sigma: float, amp: bool) -> Callable[[], Tensor]:
    """Return an evaluation of the network on noise of this sigma; amp: in bfloat16."""
    generator = torch.Generator().manual_seed(0)
    x = sigma * torch.randn(BATCH, 4, 16, 16, generator=generator)
    y = torch.nn.functional.normalize(torch.randn(BATCH, 256, generator=generator), dim=1)

    def work() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=amp):
            output: Tensor = denoiser(x, sigma, y)
        return output

    return work


def step(denoiser: EDMPrecond, sigma: float) -> Callable[[], Tensor]:
    """Return forward and backward pass in bfloat16; its output is the gradient of a layer."""
    evaluate, weight = evaluation(denoiser, sigma, amp=True), next(denoiser.parameters())

    def work() -> Tensor:
        denoiser.zero_grad()
        evaluate().float().square().mean().backward()
        assert weight.grad is not None
        return weight.grad.clone()

    return work


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = ArgumentParser(description=__doc__)
    add_arguments(parser)
    return parser.parse_args()


@one_line_errors
def main() -> None:
    """Print the table of evaluations and steps."""
    args = parse_args()
    start(args)
    denoiser, _ = load_denoiser(CHECKPOINT)
    rows = []
    for sigma in (0.1, 1.0, 10.0):
        for name in ("evaluation, float32", "evaluation, bf16", "step, bf16"):
            denoiser.requires_grad_(name.startswith("step"))
            work = (
                step(denoiser, sigma)
                if name.startswith("step")
                else evaluation(denoiser, sigma, name.endswith("bf16"))
            )
            kept, flushed = alternated(work, args.repeats)
            shown = {"of a batch of 32": name, "sigma": sigma, "kept, ms": f"{1000 * kept:.0f}"}
            shown |= {"as zero, ms": f"{1000 * flushed:.0f}", "ratio": f"{kept / flushed:.2f}"}
            rows.append(shown)
    report(args.out, "Numbers below 1e-38", rows, ["All outputs and gradients are equal bits."])


if __name__ == "__main__":
    main()
