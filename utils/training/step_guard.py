"""Numerical guards of training: they skip steps that would do harm, and count jumps."""

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
    """Verdict on one step: 0-d bool tensors; reading them waits for the device."""

    good: torch.Tensor
    spike: torch.Tensor


class StepGuard:
    """Evaluator of steps by loss and gradient norm, which must be equal in all processes.

    Only `in_a_row` waits for the device.
    """

    def __init__(self, device: torch.device) -> None:
        self._bad, self._steps, self._mean, self._variance = (
            torch.zeros((), device=device) for _ in range(4)
        )

    def check(self, loss: torch.Tensor, grad_norm: torch.Tensor) -> Verdict:
        """Check a step: good = both are finite; spike = good, with a loss far above its mean."""
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
        """Return how many bad steps the last ones are; waits for the device."""
        return int(self._bad)

    def state(self) -> dict[str, torch.Tensor]:
        """Return the running mean and variance, for a checkpoint."""
        return {"steps": self._steps, "mean": self._mean, "variance": self._variance}

    def load(self, state: Mapping[str, torch.Tensor]) -> None:
        """Continue from a checkpoint; the count of bad steps in a row starts anew."""
        self._steps.copy_(state["steps"])
        self._mean.copy_(state["mean"])
        self._variance.copy_(state["variance"])


def skip_unless(good: torch.Tensor, optimizer: torch.optim.Optimizer) -> None:
    """Make the next `step()` of a fused optimizer change nothing unless `good`, without waiting.

    Gradient scaling skips its overflows by this flag.
    """
    # Fused optimizers read this attribute, which their type does not declare.
    setattr(optimizer, "found_inf", (~good).float())  # noqa: B010


def diverged(bad_steps: int, step: int, saved: Path, fault: str | None) -> str:
    """Return the message after too many bad steps in a row.

    saved: checkpoint of the weights before them. fault: of the data, if one was met.
    """
    return (
        f"diverged: {bad_steps} steps in a row, up to step {step}, had no finite loss or gradient. "
        f"{saved} holds the weights of the last good step. {_remedy(saved, fault)}"
    )


def weights_not_finite(step: int, checkpoints: Path) -> str:
    """Return the message if weights are not finite, so that no checkpoint can be written."""
    latest = next(reversed(list_checkpoints(checkpoints).values()), None)
    return (
        f"diverged: up to step {step}, weights have become NaN or infinite, and are not saved. "
        f"{latest or 'No checkpoint'} is kept. {_remedy(latest or 'an earlier checkpoint', None)}"
    )


def _remedy(source: Path | str, fault: str | None) -> str:
    data = "" if fault is None else f"Mend the data first: {fault}. "
    return data + (
        f"Start a new run with --ckpt_path {source}, another --exp_name, and a lower train.lr "
        "(with Muon, train.muon_lr), train.grad_clip=1 or train.amp=no"
    )
