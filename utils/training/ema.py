"""Exponential moving average of the weights; evaluation and release use it."""

from __future__ import annotations

import copy

import torch

from models.edm import EDMPrecond


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

    def __init__(self, network: EDMPrecond) -> None:
        self.module = copy.deepcopy(network)
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
