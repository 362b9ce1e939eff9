"""One optimiser step: mathematics only, no files."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch

from models.batch_random import BatchRandom
from models.distillation import distillation_loss
from models.edm import edm_loss, random_for_loss
from utils.training.batches import Batch, make_condition
from utils.training.distributed import clip_gradients
from utils.training.ema import ema_decay_at
from utils.training.optimizers import set_rate
from utils.training.schedules import lr_after, mask_ratio_after
from utils.training.state import TrainingState
from utils.training.step_guard import skip_unless


class Rates(NamedTuple):
    """Learning rate (of AdamW) and mask ratio of a step."""

    lr: float
    mask_ratio: float


def train_step(state: TrainingState, batches: Iterator[Batch]) -> Rates:
    """Do one step of training and return its rates; all processes call this.

    batches: this process's slices of global batches. The step takes `train.grad_accum` of them.

    The step perturbs the condition, computes the loss and its gradients, clips and checks them,
    updates the weights unless loss or gradients are not finite, and averages the weights. It does
    not wait for the device.
    """
    config, options = state.config, state.config.train
    accelerator = state.processes.accelerator
    rng = state.processes.rank_slice.random(state.generator)
    rates = Rates(
        lr_after(state.step, state.max_steps, config, state.first_step),
        mask_ratio_after(state.step, state.max_steps, config, state.first_step),
    )
    set_rate(state.optimizer, rates.lr)

    step_loss = torch.zeros((), device=state.processes.device)
    alignment = torch.zeros_like(step_loss) if state.head is not None else None
    for _ in range(options.grad_accum):
        batch = next(batches)
        with accelerator.accumulate(state.model):
            cond = make_condition(batch.y, config, rng)
            losses = image_losses(state, batch, cond, rates.mask_ratio, rng)
            if alignment is None:
                loss = losses.mean()
                accelerator.backward(loss)
            else:
                loss, distance = losses.mean(dim=1)
                accelerator.backward(loss + options.align_coef * distance)
                alignment += distance.detach() / options.grad_accum
            step_loss += loss.detach() / options.grad_accum
            if accelerator.sync_gradients:
                grad_norm = clip_gradients(accelerator, state.trained, options.grad_clip)
                step_loss = accelerator.reduce(step_loss, "mean")
                if batch.features is None:
                    alignment = None
                elif alignment is not None:
                    alignment = accelerator.reduce(alignment, "mean")
                verdict = state.guard.check(step_loss, grad_norm)
                skip_unless(verdict.good, state.optimizer.optimizer)
            state.optimizer.step()
            state.optimizer.zero_grad()

    state.step += 1
    state.images_seen += options.batchsize
    state.window.add(step_loss, grad_norm, verdict, alignment)
    state.ema.update(
        ema_decay_at(state.images_seen, options.batchsize, options.ema_decay, options.ema_rampup)
    )
    state.power_ema.update()
    return rates


def image_losses(
    state: TrainingState,
    batch: Batch,
    cond: torch.Tensor | None,
    mask_ratio: float,
    rng: BatchRandom,
) -> torch.Tensor:
    """Compute the loss of each image (N,): the masked EDM loss, or that of a student.

    With a head for the alignment, (2, N): the second row is the alignment loss.
    cond: (N, D), perturbed, or None.
    """
    latents = batch.latents
    config, options = state.config, state.config.train
    autocast = state.processes.accelerator.autocast
    if state.teacher is not None:
        noise = rng.randn(latents.shape, latents.device)
        with autocast():
            return distillation_loss(
                state.model,
                state.teacher.bind,
                latents,
                cond,
                noise,
                state.teacher.segments,
                scale=config.distill.huber,
                rank_offset=rng.rank_offset,
            )
    loss_random = random_for_loss(state.model, latents, cond, mask_ratio, rng)
    with autocast():
        return edm_loss(
            state.model,
            latents,
            cond,
            loss_random,
            mae_loss_coef=config.model.mae_loss_coef,
            P_mean=options.P_mean,
            P_std=options.P_std,
            encoder=state.ema.module,
            features=batch.features,
        )
