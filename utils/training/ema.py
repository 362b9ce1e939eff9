"""Averages of the weights; evaluation and release use the exponential moving average."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from models.edm import EDMPrecond
from models.power_average import power_decay


def ema_decay_at(
    images_seen: int, batchsize: int, decay: float = 0.9999, rampup: float | None = None
) -> float:
    """Return the decay of an update after `images_seen` images, one `batchsize` after the last.

    Without `rampup` the decay is constant, as published. With it, the half-life is at most `rampup`
    times the images seen, so that early averages forget the random start (Karras 2022, app. F.2).
    """
    if rampup is None:
        return decay
    ramped = 0.5 ** (batchsize / max(images_seen * rampup, 1e-8))
    return min(decay, ramped)


def initial_fraction(
    steps: int,
    images_seen: int,
    batchsize: int,
    decay: float = 0.9999,
    rampup: float | None = None,
) -> float:
    """Return the fraction, 0 to 1, that the first weights still have in the average.

    It is the product of the decays of all `steps` updates, of which the last came after
    `images_seen` images; see ema_decay_at.
    """
    if rampup is None:
        return decay**steps
    fraction, seen = 1.0, images_seen - steps * batchsize
    for _ in range(steps):
        seen += batchsize
        fraction *= ema_decay_at(seen, batchsize, decay, rampup)
        if fraction < 1e-9:
            return 0.0
    return fraction


def describe_average(fraction: float, is_new: bool) -> str:
    """Name the averaged weights, and the `fraction` of the first ones in them from 1 % on.

    is_new: the first weights were random, not those of another run's checkpoint.
    """
    name = "average of the weights"
    if fraction < 0.01:
        return name
    first = "initial weights, which are noise" if is_new else "weights that the run started from"
    return f"{name}; it still holds {100 * fraction:.0f} % of the {first}"


class EMA:
    """Averaged weights of a network: `module`, a frozen copy in eval mode that follows it.

    `update` averages the trained parameters in one fused call; fixed tables are equal in both.
    """

    def __init__(self, network: EDMPrecond, shares_fixed: bool = False) -> None:
        """shares_fixed: both networks hold the same tensors of what is not trained."""
        fixed = [p for p in network.parameters() if shares_fixed and not p.requires_grad]
        self.module = copy.deepcopy(network, {id(p): p for p in fixed})
        self.module.eval().requires_grad_(False)
        self.follow(network)

    def follow(self, network: EDMPrecond) -> None:
        """Average the weights of `network` from now on, for example after both were sharded."""
        trained = [p.requires_grad for p in network.parameters()]
        self._average: list[torch.Tensor] = [
            p for p, t in zip(self.module.parameters(), trained, strict=True) if t
        ]
        self._source = [p for p in network.parameters() if p.requires_grad]

    @torch.no_grad()
    def update(self, decay: float) -> None:
        """Set average <- decay * average + (1 - decay) * weights."""
        torch._foreach_lerp_(self._average, [p.detach() for p in self._source], 1 - decay)


class PowerAverages:
    """Power-function averages of the weights (models/power_average.py), beside the EMA.

    Training never reads them. They begin with the first step after they are made.
    """

    def __init__(
        self, network: EDMPrecond, widths: Sequence[float], shares_fixed: bool = False
    ) -> None:
        """shares_fixed: see EMA."""
        self.widths, self.steps = list(widths), 0
        self.averages = [EMA(network, shares_fixed) for _ in widths]

    def update(self) -> None:
        """Take over the weights of one more step."""
        self.steps += 1
        for width, average in zip(self.widths, self.averages, strict=True):
            average.update(power_decay(self.steps, width))

    def state(self) -> dict[str, Any] | None:
        """Return widths, number of steps, and the weights of each average; None without any."""
        if not self.widths:
            return None
        weights = [average.module.state_dict() for average in self.averages]
        return {"widths": self.widths, "steps": self.steps, "weights": weights}

    def load(self, saved: Mapping[str, Any] | None) -> None:
        """Go on from a `state` of these widths; another one is left, and averages begin anew."""
        if saved is None or saved["widths"] != self.widths:
            return
        self.steps = saved["steps"]
        for average, weights in zip(self.averages, saved["weights"], strict=True):
            average.module.load_state_dict(weights)
