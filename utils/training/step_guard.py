"""Numerical guards of training: steps that would do harm are skipped, jumps are counted."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch

from utils.training.checkpoint import list_checkpoints

SPIKE = 6.0  # standard deviations above the running mean
WARM_UP = 100  # good steps before the running mean is trusted
MEMORY = 0.99  # weight of the past in it


class Verdict(NamedTuple):
    """On one step; booleans on the device, which nobody has waited for."""

    good: torch.Tensor
    spike: torch.Tensor


class StepGuard:
    """Judges steps by their loss and gradient norm, which all processes must give alike.

    Nothing here waits for the device but `in_a_row`.
    """

    def __init__(self, device: torch.device) -> None:
        self._bad, self._steps, self._mean, self._variance = (
            torch.zeros((), device=device) for _ in range(4)
        )

    def judge(self, loss: torch.Tensor, grad_norm: torch.Tensor) -> Verdict:
        """Good = both are finite; spike = a good step whose loss is far above those before it."""
        good = loss.isfinite() & grad_norm.isfinite()
        above = torch.where(good, loss - self._mean, 0)
        spike = (self._steps >= WARM_UP) & (above > SPIKE * self._variance.sqrt())
        # Running mean and variance (Welford's, with a weight that stops falling at 1 - MEMORY).
        weight = (1 / (self._steps + 1)).clamp(min=1 - MEMORY) * good
        self._mean += weight * above
        self._variance = (1 - weight) * (self._variance + weight * above**2)
        self._steps += good
        self._bad = torch.where(good, 0, self._bad + 1)
        return Verdict(good, spike)

    def in_a_row(self) -> int:
        """How many bad steps the latest ones are; waits for the device."""
        return int(self._bad)

    def state(self) -> dict[str, torch.Tensor]:
        """For a checkpoint."""
        return {"steps": self._steps, "mean": self._mean, "variance": self._variance}

    def load(self, state: Mapping[str, torch.Tensor]) -> None:
        """Go on from a checkpoint; the count of bad steps in a row starts anew."""
        self._steps.copy_(state["steps"])
        self._mean.copy_(state["mean"])
        self._variance.copy_(state["variance"])


def skip_unless(good: torch.Tensor, optimizer: torch.optim.Optimizer) -> None:
    """Make the next `step()` of a fused optimizer change nothing unless `good`, without waiting.

    This is the flag by which gradient scaling skips its overflows.
    """
    optimizer.found_inf = (~good).float()


def diverged(bad_steps: int, step: int, checkpoints: Path) -> str:
    """What to tell when too many steps in a row were bad."""
    latest = next(reversed(list_checkpoints(checkpoints).values()), None)
    source = latest or "an earlier checkpoint"
    return (
        f"diverged: {bad_steps} steps in a row, up to step {step}, had no finite loss or gradient. "
        f"The weights are as before them, and {latest or 'no checkpoint'} is kept. Look for values "
        f"that are not finite in the data, or start a new run with --ckpt_path {source}, another "
        "--exp_name, and a lower train.lr, train.grad_clip=1 or train.amp=no"
    )
