"""Checkpoints: written whole or not at all, read without running anything they contain.

A checkpoint is a dict of `model`, `ema`, `opt`, `step`, `images_seen`, `rng`, `data_position`,
`config` and `version`, of tensors and plain values only. Published checkpoints (`model`, `ema`,
`opt`, and `args` instead of the rest) are read too. A released model is a safetensors file: EMA
weights in float16, the configuration in its metadata.
"""

from __future__ import annotations

import argparse
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import safe_open
from torch import nn

from utils.base.errors import UserError, refusing
from utils.config.load import config_from_dict
from utils.config.schema import Config

VERSION = 1
ZIP_MAGIC = b"PK\x03\x04"


def checkpoint_fault(path: Path, verify: bool = False) -> str | None:
    """Why a file is not a complete checkpoint, or None; `verify` compares all its checksums."""
    if not path.is_file():
        return "does not exist"
    with open(path, "rb") as file:
        start = file.read(len(ZIP_MAGIC))
    if start != ZIP_MAGIC:
        return "is empty" if not start else "is not a checkpoint"
    if not zipfile.is_zipfile(path):
        return "is truncated"
    if verify:
        try:
            with zipfile.ZipFile(path) as archive:
                broken = archive.testzip()
        except (zipfile.BadZipFile, EOFError, OSError) as error:
            return f"is damaged ({error})"
        if broken:
            return f"is damaged (in {broken})"
    return None


def load_checkpoint(path: Path | str) -> dict[str, Any]:
    """Read a checkpoint onto the CPU; its tensors stay in the file until they are used.

    Only tensors, plain values and the published `args` namespace are admitted. Raises UserError if
    the file is missing, truncated, something else, or holds anything more.
    """
    path = Path(path)
    fault = checkpoint_fault(path)
    if fault:
        raise UserError(f"{path} {fault}")
    try:
        with (
            refusing(f"{path} is damaged or not a checkpoint"),
            torch.serialization.safe_globals([argparse.Namespace]),
        ):
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except UserError as error:
        if not isinstance(error.__cause__, pickle.UnpicklingError):
            raise
        raise UserError(
            f"{path} is refused: it holds more than tensors and plain values, or is damaged"
        ) from error
    held = [state[key] for key in ("model", "ema") if key in state] if _is_named(state) else []
    if not held or not all(_is_named(w) and all(map(torch.is_tensor, w.values())) for w in held):
        raise UserError(f"{path} is not a checkpoint: it has neither 'model' nor 'ema' weights")
    version = state.get("version", 0)
    if not isinstance(version, int) or version > VERSION:
        raise UserError(f"{path} was written by a newer version of this program; please update")
    return state


def _is_named(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(name, str) for name in value)


def load_weights(
    network: nn.Module,
    weights: Mapping[str, torch.Tensor],
    source: Path,
    assign: bool = False,
    strict: bool = True,
) -> tuple[list[str], list[str]]:
    """Copy named weights into a network, or make them its own (`assign`).

    `source` is the file they come from. Raises UserError naming what does not fit; unless `strict`,
    missing and unknown names are no faults but returned, as long as some are known.
    """
    own = network.state_dict()
    missing, unknown = sorted(own.keys() - weights.keys()), sorted(weights.keys() - own.keys())
    tolerated = not strict and len(missing) < len(own)
    faults = [
        f"{what} {', '.join(names[:3])}{f' and {len(names) - 3} more' if len(names) > 3 else ''}"
        for what, names in (
            ("lacks", [] if tolerated else missing),
            ("has unknown", [] if tolerated else unknown),
            (
                "has another shape for",
                sorted(n for n in own.keys() & weights.keys() if own[n].shape != weights[n].shape),
            ),
        )
        if names
    ]
    if faults:
        raise UserError(f"{source} does not fit the configured model: it {'; it '.join(faults)}")
    network.load_state_dict(weights, assign=assign, strict=strict)
    return missing, unknown


def read_weights(path: Path, which: str = "ema") -> tuple[dict[str, torch.Tensor], Config | None]:
    """Weights `which` ('ema' or 'model') of a checkpoint or a released safetensors file (EMA only).

    Returns them with the configuration stored beside them; published checkpoints have none.
    """
    if path.suffix == ".safetensors":
        return read_safetensors(path)
    state = load_checkpoint(path)
    if which not in state:
        raise UserError(f"{path} has no '{which}' weights, only {', '.join(sorted(state))}")
    config = config_from_dict(state["config"], str(path)) if "config" in state else None
    return state[which], config


def read_safetensors(path: Path) -> tuple[dict[str, torch.Tensor], Config | None]:
    """Weights and configuration of a released model."""
    if not path.is_file():
        raise UserError(f"{path} does not exist; name one, e.g. of results/demo/checkpoints")
    with refusing(f"{path} is damaged or not a safetensors file"):
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        config = yaml.safe_load(metadata["config"]) if "config" in metadata else None
    return weights, config_from_dict(config, str(path)) if config else None
