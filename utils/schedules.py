"""What changes over training: learning rate and mask ratio, as functions of the finished steps."""

from __future__ import annotations

import math

from models.maskdit import mask_ratio_at
from utils.config import Config
from utils.errors import UserError


def number_of_steps(config: Config, images: int) -> int:
    """Optimizer steps of the whole training on `images` images; the lower limit holds."""
    train, limits = config.train, []
    if train.max_num_steps is not None:
        limits.append(train.max_num_steps)
    if train.epochs is not None:
        limits.append(math.ceil(train.epochs * images / train.batchsize))
    if not limits:
        raise UserError("train.max_num_steps or train.epochs: set how long to train")
    return min(limits)


def lr_after(step: int, max_steps: int, config: Config) -> float:
    """Learning rate of the update that follows `step` finished ones.

    `lr_rampup_kimg` and `lr_warmup_steps` rise linearly from zero, as published (the lower holds
    where both are set). `lr_schedule` goes from `lr` to `lr * lr_min_ratio` at `max_steps`.
    """
    train, rise = config.train, 1.0
    if train.lr_rampup_kimg > 0:
        rise = min(rise, step * train.batchsize / (train.lr_rampup_kimg * 1000))
    if train.lr_warmup and train.lr_warmup_steps > 0:
        rise = min(rise, step / train.lr_warmup_steps)
    x = min(step / max_steps, 1.0)
    share = {
        "constant": 1.0,
        "cosine": (1 + math.cos(math.pi * x)) / 2,
        "linear": 1 - x,
    }[train.lr_schedule]
    return train.lr * rise * (train.lr_min_ratio + (1 - train.lr_min_ratio) * share)


def mask_ratio_after(step: int, max_steps: int, config: Config) -> float:
    """Mask ratio of the step that follows `step` finished ones; 0 in the unmasked tail."""
    model = config.model
    if step >= (1 - model.unmasked_tail) * max_steps:
        return 0.0
    return mask_ratio_at(
        model.mask_ratio_fn, step / max_steps, model.mask_ratio, model.mask_ratio_min
    )


def always_masked(config: Config) -> bool:
    """Whether every step hides some tokens."""
    model = config.model
    return model.mask_ratio_fn == "constant" and model.mask_ratio > 0 and not model.unmasked_tail
