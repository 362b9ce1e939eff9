"""Shared parts of the two trainings: the learning rate, and a checkpoint to resume from."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import nn

from utils.base.files import write_whole

WARM_UP = 200  # steps


def set_lr(
    optimizer: torch.optim.Optimizer, peak: float, step: int, steps: int, warm_up: int = WARM_UP
) -> None:
    """Set the learning rate: a linear warm-up, then half a cosine that ends with 0 at `steps`.

    A group of parameters with a `pace` learns that many times faster.
    """
    lr = peak * min((step + 1) / warm_up, 0.5 + 0.5 * math.cos(math.pi * step / steps))
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("pace", 1.0)


def save(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    """Write the state after `step` steps, whole or not at all."""
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
    write_whole(path, lambda partial: torch.save(state, partial))


def resume(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Load the state that `save` wrote, if there is one; return the number of steps done."""
    if not path.exists():
        return 0
    state = torch.load(path, weights_only=True)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    print(f"resumed at step {state['step']}")
    return int(state["step"])
