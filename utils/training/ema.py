"""Exponential moving average of the weights, the ones that are evaluated and released."""

from __future__ import annotations

import copy

import torch
from torch import nn


def ema_decay_at(
    images_seen: int, batchsize: int, decay: float = 0.9999, rampup: float | None = None
) -> float:
    """Decay of one update after `images_seen` images, `batchsize` images since the last update.

    Without `rampup` the published constant. With it, the half-life is at most `rampup` times the
    images seen, so that early averages forget the random start (EDM, Karras 2022, app. F.2).
    """
    if rampup is None:
        return decay
    ramped = 0.5 ** (batchsize / max(images_seen * rampup, 1e-8))
    return min(decay, ramped)


class EMA:
    """Holds `.module`, a frozen copy of a network in eval mode whose weights follow the original.

    `update` averages the trained parameters in one fused call; fixed tables are equal in both.
    """

    def __init__(self, network: nn.Module) -> None:
        self.module = copy.deepcopy(network).eval().requires_grad_(False)
        self.follow(network)

    def follow(self, network: nn.Module) -> None:
        """Average the weights of `network` from now on, e.g. because both have been sharded."""
        trained = [p.requires_grad for p in network.parameters()]
        self._average = [p for p, t in zip(self.module.parameters(), trained, strict=True) if t]
        self._source = [p for p in network.parameters() if p.requires_grad]

    @torch.no_grad()
    def update(self, decay: float) -> None:
        """average <- decay * average + (1 - decay) * weights."""
        torch._foreach_lerp_(self._average, [p.detach() for p in self._source], 1 - decay)
