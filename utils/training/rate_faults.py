"""Faults of the settings that show in the sizes of the first updates, or before any."""

from __future__ import annotations

import math

import torch

from models.backbones import MODEL_SIZES
from utils.config.schema import Config
from utils.training.ema import initial_fraction
from utils.training.schedules import base_rates, lr_after
from utils.training.state import TrainingState

# Of an update at the full rate relative to its weights: usual are 0.001 to 0.02.
HIGHEST, LOWEST = 0.05, 3e-4
TRAVEL = 1.5  # least sum of a new run's updates, relative to the weights
SETTLED = 60  # steps until the first updates, of layers that begin at zero, are over
WIDTH = 192  # up to which HIGHEST holds for AdamW
KEPT = 0.3, 0.9  # most of the first weights that the last average may hold: new run, other start


def average_fault(config: Config, state: TrainingState) -> str | None:
    """Return a line if the average will still be near the weights that it began with."""
    train, steps = config.train, state.max_steps - state.first_step
    seen = state.images_seen + (state.max_steps - state.step) * train.batchsize
    held = initial_fraction(steps, seen, train.batchsize, train.ema_decay, train.ema_rampup)
    if held <= KEPT[not is_fresh(config, state)]:
        return None
    return (
        f"dead average: after the last step, the averaged weights will still hold {held:.0%} of "
        f"the first ones (train.ema_decay {train.ema_decay:g} over {steps} steps); set "
        "train.ema_rampup=0.05, or a lower train.ema_decay"
    )


def rate_fault(config: Config, state: TrainingState, updates: dict[str, float]) -> str | None:
    """Return a line if the learning rate is far too high or too low.

    updates: sizes of the last step's updates, as Observer.updates gives them.
    """
    train, lr = config.train, base_rates(config)[0]
    now = lr_after(state.step - 1, state.max_steps, config, state.first_step)
    if not now or not all(map(math.isfinite, updates.values())):
        return None
    full = {name: ratio * lr / now for name, ratio in updates.items()}
    name, highest = max(full.items(), key=lambda item: item[1])
    key = "train.lr" if train.optimizer == "adamw" or name != "update_ratio" else "train.muon_lr"
    of = {"train.lr": lr, "train.muon_lr": base_rates(config)[1]}[key]
    width = config.model.hidden_size or MODEL_SIZES[config.model.model_type][1]
    # AdamW's update grows with the width in spectral norm, relative to that of the weights (Yang
    # et al. 2023, "A spectral condition for feature learning"); Muon's does not.
    wide = max(1.0, width / WIDTH) ** 0.5 if train.optimizer == "adamw" else 1.0
    if highest * wide > HIGHEST:
        return (
            f"learning rate too high: a step at the full rate changes {_LAYERS[name]} by "
            f"{highest:.1%} of their size ({key} {of:g}; usual are 0.1 to 2 %); divide it by "
            f"{_round(highest * wide / 0.012)}"
        )
    ratio = full["update_ratio"]
    rates = (lr_after(n, state.max_steps, config, state.first_step)
             for n in range(state.first_step, state.max_steps))  # fmt: skip
    travel = ratio * torch.tensor(list(rates)).sum().item() / lr
    is_early = state.step - state.first_step < SETTLED
    if is_early or not is_fresh(config, state) or (ratio >= LOWEST and travel >= TRAVEL):
        return None
    key = "train.lr" if train.optimizer == "adamw" else "train.muon_lr and train.lr"
    return (
        f"learning rate too low: a step at the full rate changes {_LAYERS['update_ratio']} by "
        f"{ratio:.2%} of their size, and all steps by at most {travel:.2g} times it ({key}; usual "
        "is 3 or more); multiply it by "
        f"{_round(max(3 * TRAVEL / max(travel, 1e-9), 3 * LOWEST / max(ratio, 1e-9)))}, or train "
        "for longer"
    )


_LAYERS = {"update_ratio": "the blocks' matrices", "update_ratio_adaln": "the layers of adaLN"}


def is_fresh(config: Config, state: TrainingState) -> bool:
    """Return True if the first weights were random."""
    return state.first_step == 0 and state.source is None and not config.is_distilled


def _round(factor: float) -> str:
    """Return a factor with one digit."""
    return f"{float(f'{factor:.1g}'):g}"
