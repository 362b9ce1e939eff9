"""What the two encoder trainings share: the learning rate, and a checkpoint to go on from."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import nn

from utils.base.files import write_whole

WARM_UP = 200  # steps


def set_lr(optimizer: torch.optim.Optimizer, peak: float, step: int, steps: int) -> None:
    """Linear warm-up, then half a cosine down to 0 at `steps`."""
    lr = peak * min((step + 1) / WARM_UP, 0.5 + 0.5 * math.cos(math.pi * step / steps))
    for group in optimizer.param_groups:
        group["lr"] = lr


def save(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    """Keep the state after `step` steps, in one rename."""
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
    write_whole(path, lambda partial: torch.save(state, partial))


def resume(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Load what `save` kept, if anything; returns how many steps are done."""
    if not path.exists():
        return 0
    state = torch.load(path, weights_only=True)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    print(f"resumed at step {state['step']}")
    return state["step"]
