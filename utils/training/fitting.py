"""Weights of networks of another size, condition or kind, made to fit the one that is trained."""

from __future__ import annotations

from collections.abc import Mapping
from math import log
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from models.adapters import CONDITION, is_new, plain_weights
from models.blocks import sincos_2d
from models.edm import EDMPrecond

POSITIONS = ("model.pos_embed", "model.decoder_pos_embed")
OUTPUT = ("model.final_layer.linear.weight", "model.final_layer.linear.bias")


class Fit(NamedTuple):
    """Weights that fit a network, notes on what was changed, and what must be trained after it.

    relearned: one of "", "condition" and "all"; see `train.adapt`.
    """

    weights: dict[str, Tensor]
    notes: list[str]
    relearned: str = ""


def fit(
    stored: Mapping[str, Tensor], denoiser: EDMPrecond, source: Path, *, other_condition: bool
) -> Fit:
    """Return weights of `source` for `denoiser`; what is fresh in them is the denoiser's own.

    Adapters are merged. Networks of DiT (Peebles & Xie 2022) get an output like ours. Positions of
    another grid are interpolated.
    other_condition: a condition layer of another shape is replaced by a fresh one.
    """
    own = denoiser.state_dict()
    weights, notes, relearned = plain_weights(stored), list[str](), ""
    if is_dit(weights):
        weights, relearned = from_dit(weights, denoiser.model.in_channels), "all"
        notes.append(
            f"{source} is a network of DiT: it predicts noise at steps 0 to 999, and learns anew "
            "to read ln(sigma) and to predict as EDM does"
        )
    layer = [n for n in own.keys() | weights.keys() if n.startswith(CONDITION)]
    differ = [n for n in layer if n in own and n in weights and _differ(own, weights, n)]
    if other_condition and differ:
        shape = tuple(weights[differ[0]].shape)
        weights = {n: w for n, w in weights.items() if n not in layer}
        weights |= {n: own[n] for n in layer if n in own}
        relearned = relearned or "condition"
        width = denoiser.model.cond_width
        notes.append(
            f"the class or condition embedding of {source}, {shape}, is replaced by a fresh layer "
            f"for {width} numbers; all other weights are kept"
        )
    grids = set[int]()
    for name in POSITIONS:
        if name in own and name in weights and _is_other_grid(own[name], weights[name], denoiser):
            weights[name], grid = _interpolated(weights[name], denoiser, name)
            grids.add(grid)
    for grid in grids:
        ratio = denoiser.model.grid / grid
        notes.append(
            f"positions are interpolated from {grid}x{grid} to {denoiser.model.grid}x"
            f"{denoiser.model.grid} tokens; noise of equal effect has {ratio:g} times the sigma: "
            f"train.P_mean should be {log(ratio):+.2f} of that of {source} (docs/adapting.md)"
        )
    new = {name: tensor for name, tensor in own.items() if is_new(name)}
    return Fit({**weights, **new}, notes, relearned)


def _differ(own: Mapping[str, Tensor], weights: Mapping[str, Tensor], name: str) -> bool:
    return own[name].shape != weights[name].shape


def _is_other_grid(own: Tensor, stored: Tensor, denoiser: EDMPrecond) -> bool:
    """Return True if stored positions (1, T, D) are those of a square grid of another size."""
    patches = stored.shape[1] - (own.shape[1] - denoiser.model.num_patches)
    is_square = patches > 0 and round(patches**0.5) ** 2 == patches
    return own.shape != stored.shape and own.shape[2] == stored.shape[2] and is_square


def _interpolated(stored: Tensor, denoiser: EDMPrecond, name: str) -> tuple[Tensor, int]:
    """Return positions (1, T, D) for the grid of `denoiser`, and the side of the grid of `stored`.

    Sines and cosines are computed anew in steps of the old grid; learned positions are interpolated
    between its centres.
    """
    own = denoiser.get_parameter(name)
    extra, side = own.shape[1] - denoiser.model.num_patches, denoiser.model.grid
    grid = round((stored.shape[1] - extra) ** 0.5)
    if not stored[:, :extra].any():
        return sincos_2d(own.shape[2], side, extra, of_grid=grid), grid
    table = stored[:, extra:].float().transpose(1, 2).unflatten(2, (grid, grid))
    larger = F.interpolate(table, (side, side), mode="bilinear", align_corners=False)
    return torch.cat([stored[:, :extra].float(), larger.flatten(2).transpose(1, 2)], dim=1), grid


def is_dit(weights: Mapping[str, Tensor]) -> bool:
    """Return True if a network predicts a variance beside each channel, as those of DiT do."""
    if OUTPUT[0] not in weights or "model.x_embedder.proj.weight" not in weights:
        return False
    return len(weights[OUTPUT[0]]) == 2 * weights["model.x_embedder.proj.weight"][0].numel()


def from_dit(weights: Mapping[str, Tensor], channels: int) -> dict[str, Tensor]:
    """Return the weights of a network of DiT with an output of `channels` channels.

    DiT predicts the noise n, and in further channels its variance, which is left out. EDM's F is -n
    for small sigma (Karras 2022, table 1), so the output changes its sign.
    """
    named = dict(weights)
    for name in OUTPUT:
        rows = named[name]  # (p p C', …), the channel varies fastest
        patch = named["model.x_embedder.proj.weight"].shape[-1] ** 2
        by_pixel = rows.unflatten(0, (patch, -1))[:, :channels]
        named[name] = -by_pixel.flatten(0, 1).contiguous()
    return named
