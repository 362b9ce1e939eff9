"""Schedules of a training: learning rate and mask ratio as functions of the finished steps."""

from __future__ import annotations

import math
from typing import get_args

from models.backbones import MODEL_SIZES
from models.choices import MaskSchedule
from models.token_mask import kept_tokens
from utils.base.errors import UserError
from utils.config.schema import Config


def number_of_steps(config: Config, images: int, first_step: int = 0) -> int:
    """Return the number of finished steps at which a training on `images` images ends.

    The lower of `max_num_steps` and `epochs` holds. A run that starts from another run's checkpoint
    counts from its `first_step`. `max_num_steps` counts from there, but `epochs` include the steps
    before, as published. Raises UserError if there is no limit, or nothing left to do.
    """
    train, limits = config.train, []
    if train.max_num_steps is not None:
        limits.append(first_step + train.max_num_steps)
    if train.epochs is not None:
        limits.append(math.ceil(train.epochs * images / train.batchsize))
        if limits[-1] <= first_step:
            raise UserError(
                f"train.epochs: {train.epochs} epochs end at step {limits[-1]}, but the checkpoint "
                f"to start from has done {first_step}; set more, or train.max_num_steps alone"
            )
    if not limits:
        raise UserError("train.max_num_steps or train.epochs: set how long to train")
    return min(limits)


def lr_after(step: int, max_steps: int, config: Config, first_step: int = 0) -> float:
    """Return the learning rate of the update that follows `step` finished ones.

    `lr_rampup_kimg` and `lr_warmup_steps` rise linearly from zero; the lower holds where both are
    set. A rate in `lr_warmup` is held for these steps instead. `lr_rampup_kimg` counts from
    step 0 and `lr_warmup_steps` from the run's `first_step`, as published. `lr_schedule` goes from
    `lr` at `first_step` to `lr * lr_min_ratio` at `max_steps`.
    """
    train, rise = config.train, 1.0
    if train.lr_rampup_kimg > 0:
        rise = min(rise, step * train.batchsize / (train.lr_rampup_kimg * 1000))
    if train.lr_warmup and step - first_step < train.lr_warmup_steps:
        if train.lr_warmup is not True:
            return train.lr_warmup
        rise = min(rise, (step - first_step) / train.lr_warmup_steps)
    x = min((step - first_step) / (max_steps - first_step), 1.0)
    fraction = {
        "constant": 1.0,
        "cosine": (1 + math.cos(math.pi * x)) / 2,
        "linear": 1 - x,
    }[train.lr_schedule]
    lr = base_rates(config)[0]
    return lr * rise * (train.lr_min_ratio + (1 - train.lr_min_ratio) * fraction)


def base_rates(config: Config) -> tuple[float, float]:
    """Return the learning rates of AdamW and Muon for the configured width of the network.

    With `train.lr_base_width`, AdamW's rate falls as 1/width (muP, Yang et al. 2022) and Muon's as
    1/sqrt(width), as the spectral norm of its RMS-matched update grows with the square root (Yang
    et al. 2023, "A spectral condition for feature learning", condition 1).
    """
    train, model = config.train, config.model
    if train.lr_base_width is None:
        return train.lr, train.muon_lr
    ratio = train.lr_base_width / (model.hidden_size or MODEL_SIZES[model.model_type][1])
    return train.lr * ratio, train.muon_lr * math.sqrt(ratio)


def mask_ratio_after(step: int, max_steps: int, config: Config, first_step: int = 0) -> float:
    """Return the mask ratio of the step that follows `step` finished ones.

    It is 0 in the unmasked tail, and for a student, which learns to denoise all tokens.
    The schedule runs from the run's `first_step` to `max_steps`, as published.
    """
    model, done, length = config.model, step - first_step, max_steps - first_step
    if config.is_distilled or done >= (1 - model.unmasked_tail) * length:
        return 0.0
    return mask_ratio_at(model.mask_ratio_fn, done / length, model.mask_ratio, model.mask_ratio_min)


def steps_aligned(max_steps: int, config: Config, first_step: int = 0) -> int:
    """Return the number of finished steps from which on tokens are no longer aligned.

    The alignment ends after `align_until` of the run's steps (HASTE, Wang 2025).
    """
    if not config.is_aligned:
        return first_step
    return first_step + math.ceil(config.train.align_until * (max_steps - first_step))


def align_coef_after(step: int, max_steps: int, config: Config, first_step: int = 0) -> float:
    """Return the weight of the alignment in the step that follows `step` finished ones."""
    is_on = step < steps_aligned(max_steps, config, first_step)
    return config.train.align_coef if is_on else 0.0


def alignment_depth(config: Config, blocks: int) -> int:
    """Return the block of the encoder, from 1, whose tokens are aligned.

    Networks of 24 and 28 blocks were published with the 8th (Yu 2025).
    Raises UserError if the encoder has fewer than `train.align_depth`.
    """
    depth = config.train.align_depth or max(1, min(8, blocks // 2))
    if depth > blocks:
        raise UserError(f"train.align_depth: {depth}, but the encoder has {blocks} blocks")
    return depth


def jumps_of_longer(
    before: Config, config: Config, images: int, step: int, first_step: int = 0
) -> list[str]:
    """Return a note if a schedule jumps, as `config` trains longer than `before`.

    step: the number of steps that the run has done.
    """
    old, new = (number_of_steps(c, images, first_step) for c in (before, config))
    if old == new or step <= first_step:
        return []
    jumps = []
    for key, name, value_after, text in (
        ("train.lr_schedule", "learning rate", lr_after, "{:.2e}"),
        ("model.mask_ratio_fn, model.unmasked_tail", "mask ratio", mask_ratio_after, "{:.2f}"),
        ("train.align_until", "weight of the alignment", align_coef_after, "{:g}"),
    ):
        was = text.format(value_after(min(step, old) - 1, old, before, first_step))
        now = text.format(value_after(step, new, config, first_step))
        still = text.format(value_after(step, old, before, first_step))
        if now not in (was, still):
            jumps.append(f"the {name} goes from {was} to {now} ({key})")
    if not jumps:
        return []
    return [
        f"note: the run now ends at step {new}, not {old} (train.max_num_steps, train.epochs): "
        f"{'; '.join(jumps)}. A new run from this checkpoint (--ckpt_path and another --exp_name) "
        "has a schedule of its own"
    ]


def check_mask_ratio(config: Config, tokens: int) -> None:
    """Raise UserError if the highest mask ratio hides all `tokens` of an image."""
    ratio = config.model.mask_ratio
    if not config.is_distilled and kept_tokens(tokens, ratio) < 1:
        raise UserError(
            f"model.mask_ratio: {ratio:g} hides all {tokens} token(s) of an image; set it below "
            f"{1 - 1 / tokens:g}, or to 0"
        )


def always_masked(config: Config) -> bool:
    """Return True if every step hides some tokens."""
    model = config.model
    ends_masked = not (model.unmasked_tail or config.is_distilled)
    return model.mask_ratio_fn == "constant" and model.mask_ratio > 0 and ends_masked


def mask_ratio_at(schedule: MaskSchedule, progress: float, ratio: float, ratio_min: float) -> float:
    """Return the mask ratio at `progress` (0 = start of training, 1 = its end).

    Every schedule falls from `ratio` towards `ratio_min`, but "linear", which climbs from
    `ratio_min` to `ratio`. Raises ValueError for another name.
    """
    if schedule not in (known := get_args(MaskSchedule)):
        raise ValueError(f"mask schedule '{schedule}' is not one of {', '.join(known)}")
    if schedule == "constant":
        fraction = 1.0
    elif schedule == "linear":
        fraction = progress
    elif schedule == "exp":
        fraction = math.exp(-7 * progress)
    else:
        fraction = math.cos(math.pi / 2 * progress) ** int(schedule.removeprefix("cosine"))
    return ratio_min + (ratio - ratio_min) * fraction
