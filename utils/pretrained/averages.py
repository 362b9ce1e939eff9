"""Averages of any width, made from the two that the checkpoints of a training keep."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file

from models.adapters import plain_weights
from models.power_average import Snapshot, reconstruction
from utils.base.errors import UserError
from utils.base.files import write_whole
from utils.pretrained.checkpoint_files import list_checkpoints, load_checkpoint, read_weights


class Kept(NamedTuple):
    """An average in a checkpoint: its snapshot, the file, and its number there."""

    snapshot: Snapshot
    path: Path
    number: int


def kept_averages(checkpoint: Path) -> list[Kept]:
    """List the power-function averages of a checkpoint and of earlier ones beside it.

    Only those count that began with the same step. None if the training kept none.
    """
    own = _power_ema(load_checkpoint(checkpoint))
    if own is None:
        return []
    begun, steps = own
    found: list[Kept] = []
    for path in {*list_checkpoints(checkpoint.parent).values(), checkpoint}:
        state = load_checkpoint(path)
        there = _power_ema(state)
        if there is None or there[0] != begun or there[1] > steps:
            continue
        widths = state["power_ema"]["widths"]
        found += [Kept(Snapshot(w, there[1]), path, number) for number, w in enumerate(widths)]
    return sorted(found)


def _power_ema(state: dict[str, Any]) -> tuple[int, int] | None:
    """Return the step with which the averages of a checkpoint began, and how many they hold."""
    kept = state.get("power_ema")
    return None if kept is None else (state["step"] - kept["steps"], kept["steps"])


def error_of(kept: list[Kept], width: float) -> float:
    """Return the relative error of an average of this width at the last of the kept ones."""
    return _factors(kept, width)[1]


def _factors(kept: list[Kept], width: float) -> tuple[list[float], float]:
    snapshots = [one.snapshot for one in kept]
    return reconstruction(snapshots, Snapshot(width, max(s.steps for s in snapshots)))


def write_average(checkpoint: Path, kept: list[Kept], width: float, out: Path) -> None:
    """Write the average of this width at a checkpoint as float32, with the checkpoint's config.

    The file is one of `read_weights`, and equal bit for bit whenever it is written: its hash finds
    the records of `tools/tune.py`.
    Raises UserError if the checkpoint holds no configuration.
    """
    fixed, config = load_checkpoint(checkpoint)["ema"], read_weights(checkpoint)[1]
    if config is None:
        raise UserError(f"{checkpoint} holds no configuration; averages need one")
    # Rounded, as libraries of linear algebra differ in the last digits.
    factors = [float(f"{factor:.12g}") for factor in _factors(kept, width)[0]]
    sums: dict[str, torch.Tensor] = {}
    for factor, one in zip(factors, kept, strict=True):
        weights = load_checkpoint(one.path)["power_ema"]["weights"][one.number]
        for name, tensor in weights.items():
            part = factor * tensor.double()
            sums[name] = sums[name] + part if name in sums else part
    # Fixed tables are no averages: their sum would be rounded.
    averaged = {
        name: tensor if torch.equal(tensor, weights[name]) else sums[name].float()
        for name, tensor in fixed.items()
    }
    averaged = {name: tensor.contiguous() for name, tensor in plain_weights(averaged).items()}
    metadata = {"config": config.to_yaml()}  # safetensors writes several entries in any order
    write_whole(out, lambda temporary: save_file(averaged, temporary, metadata=metadata))
