"""Report what is normal in a training beside its loss, and count what the report costs.

Nothing here changes a training: no random number comes from its generators, and weights are read.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from utils.config.schema import Config
from utils.data.latent_dataset import LatentDataset
from utils.training.held_out import IMAGES, PASSES, ROWS, HeldOut
from utils.training.optimizers import token_matrices
from utils.training.rate_faults import rate_fault
from utils.training.shards import is_shard
from utils.training.state import TrainingState

COST = 0.015  # of a training's computation that observations may take, by the number of passes
NAMES = ("update_ratio", "update_ratio_adaln")
MATRICES = 8  # of each kind whose updates are measured
EARLY = (20, 40, 60, 80, 100)  # steps of a run after which updates are measured as well


def steps_between(config: Config) -> int:
    """Return the number of steps from one observation to the next; 0 = there are none.

    It is the least multiple of `log.log_every` that keeps observations below COST of the
    computation: a step has a forward and a backward pass, the latter twice the work, over the
    tokens that are not hidden.
    """
    if config.log.observe_every is not None:
        return config.log.observe_every
    of_a_step = 3 * config.train.batchsize * (1 - config.model.mask_ratio)
    least = PASSES * ROWS / (COST * of_a_step)
    return config.log.log_every * math.ceil(least / config.log.log_every)


class Observer:
    """Metrics of a run beside its loss, at some of its log steps. All processes call all methods.

    `update_ratio` is the size of the last step's change of the matrices through which tokens pass,
    relative to theirs. `update_ratio_adaln` is that of the layers through which the condition acts;
    they begin at zero and count as what a layer of their width usually begins with.
    `ema_distance` is the size of weights minus average, relative to the weights.
    """

    def __init__(self, config: Config, data: LatentDataset, state: TrainingState) -> None:
        """Read the held-out set, and follow the steps of the optimizer from now on."""
        self.every = steps_between(config)
        self._state, self._before = state, dict[str, list[Tensor]]()
        self._named = False  # whether a fault of the learning rate was
        self._watched: dict[str, list[torch.nn.Parameter]] = {}
        self._sums = torch.zeros(len(NAMES), 2, device=state.processes.device)
        self.held_out = None
        if not self.every:
            return
        if state.teacher is None:
            self.held_out = HeldOut(config, data, state)
        if config.train.adapt != "all":
            return  # the matrices that updates are measured of stand still
        adaln = [
            weight
            for name, weight in state.denoiser.model.named_parameters()
            if weight.requires_grad and weight.ndim == 2 and "adaLN" in name
        ]
        self._watched = {
            name: weights[:: max(1, len(weights) // MATRICES)][:MATRICES]
            for name, weights in zip(NAMES, (token_matrices(state.denoiser), adaln), strict=True)
            if weights  # a network without adaLN has none of these
        }
        state.optimizer.optimizer.register_step_pre_hook(self._remember)
        state.optimizer.optimizer.register_step_post_hook(self._compare)

    def notes(self) -> list[str]:
        """Return lines for the user that say what is measured, and how often."""
        if self.held_out is None:
            return []
        sigmas = ", ".join(f"{sigma:.2g}" for sigma in self.held_out.sigmas.tolist())
        return [
            f"held-out loss every {self.every} steps: {IMAGES} images of {self.held_out.origin} "
            f"at sigma {sigmas}"
        ]

    def rate_fault(self) -> str | None:
        """Return a line for a fault of the learning rate that the last step shows, once a run."""
        state = self._state
        is_early = state.step - state.first_step in EARLY
        if not self._watched or self._named or not is_early:
            return None
        fault = rate_fault(state.config, state, self.updates())
        self._named = fault is not None
        return fault

    def is_due(self, step: int) -> bool:
        """Return True if the metrics after `step` finished steps are to be logged."""
        is_last = step == self._state.max_steps and step - self._state.first_step >= self.every
        return self.every > 0 and (step % self.every == 0 or is_last)

    def measures_updates(self, step: int) -> bool:
        """Return True if the update of this step, counted from 1, is measured."""
        return self.is_due(step) or (self.every > 0 and step - self._state.first_step in EARLY)

    def _remember(self, *_: Any) -> None:
        if self.measures_updates(self._state.step + 1):
            self._before = {
                name: [local(weight).clone() for weight in weights]
                for name, weights in self._watched.items()
            }

    @torch.no_grad()
    def _compare(self, *_: Any) -> None:
        for place, (name, before) in enumerate(self._before.items()):
            after = [local(weight) for weight in self._watched[name]]
            changes = [new - old for new, old in zip(after, before, strict=True)]
            weights = self._watched[name]
            usual = sum(new.numel() / w.shape[1] for new, w in zip(after, weights, strict=True))
            self._sums[place] = torch.stack([squares(changes), squares(before).clamp(min=usual)])
        self._before = {}

    def updates(self) -> dict[str, float]:
        """Return the update ratios of the last measured step; an adapter has none."""
        if not self._watched:
            return {}
        sums = self._sums
        if self._state.processes.sharded:
            sums = self._state.processes.accelerator.reduce(sums, "sum")
        ratios = (sums[:, 0] / sums[:, 1]).sqrt().tolist()[: len(self._watched)]
        return dict(zip(self._watched, ratios, strict=True))

    @torch.no_grad()
    def metrics(self) -> dict[str, float]:
        """Return all metrics of the last step, by name."""
        state = self._state
        found = {**self.updates()}
        pairs = zip(state.denoiser.parameters(), state.ema.module.parameters(), strict=True)
        trained = [(local(w), local(a)) for w, a in pairs if w.requires_grad]
        sums = torch.stack([squares(w - a for w, a in trained), squares(w for w, _ in trained)])
        if state.processes.sharded:
            sums = state.processes.accelerator.reduce(sums, "sum")
        found["ema_distance"] = float((sums[0] / sums[1]).sqrt())
        if self.held_out is not None:
            found |= self.held_out.measure(state)
        return {name: value for name, value in found.items() if math.isfinite(value)}


def local(weight: Tensor) -> Tensor:
    """Return the part of a weight that this process holds."""
    weight = weight.detach()
    return weight.to_local() if is_shard(weight) else weight


def squares(tensors: Iterable[Tensor]) -> Tensor:
    """Return the sum of the squares of all numbers, 0-d float32."""
    return torch.stack([tensor.float().square().sum() for tensor in tensors]).sum()


def observation_line(step: int, values: Mapping[str, float]) -> str:
    """Return the line of an observation for the console."""
    prefix = "val" if "val_loss" in values else "seen"
    parts = [f"step {step:>8d}"]
    for name, label, form in (
        (
            f"{prefix}_loss",
            {"val": "held-out", "seen": "fixed training"}[prefix] + " loss ",
            "{:.4f}",
        ),
        (f"{prefix}_loss_ema", "of the average ", "{:.4f}"),
        ("cond_gain", "condition helps ", "{:.1%}"),
        ("guidance", "changes ", "{:.3f}"),
        ("update_ratio", "update ", "{:.1e}"),
        ("ema_distance", "average off by ", "{:.3f}"),
    ):
        if name in values:
            parts.append(label + form.format(values[name]))
    return "  ".join(parts)
