"""Checkpoints: written whole or not at all, read without running anything they contain.

A checkpoint is a dict of `model`, `ema`, `opt`, `step`, `images_seen`, `rng`, `data_position`,
`config` and `version`, of tensors and plain values only. Published checkpoints (`model`, `ema`,
`opt`, and `args` instead of the rest) are read too. A released model is a safetensors file: EMA
weights in float16, the configuration in its metadata.
"""

from __future__ import annotations

import argparse
import os
import pickle
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from models.edm import EDMPrecond, build_denoiser
from utils.config import Config, config_from_dict
from utils.errors import UserError, refusing

VERSION = 1
ZIP_MAGIC = b"PK\x03\x04"


def write_whole(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a temporary file, bring it to disk, then give it its name.

    At no moment does `path` name an unfinished file; after an error nothing is left behind.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def checkpoint_path(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step lies."""
    return folder / f"{step:07d}.pt"


def list_checkpoints(folder: Path) -> dict[int, Path]:
    """Step -> file of all checkpoints in a folder, in order of the steps."""
    found = {int(p.stem): p for p in folder.glob("*.pt") if p.stem.isdigit()}
    return dict(sorted(found.items()))


def remove_old(folder: Path, keep_last: int | None, keep_every: int | None = None) -> None:
    """Delete all but the last `keep_last` checkpoints (None = all stay) of a folder.

    Those whose step is a multiple of `keep_every` stay too.
    """
    if keep_last is None:
        return
    for step, path in list(list_checkpoints(folder).items())[:-keep_last]:
        if not keep_every or step % keep_every:
            path.unlink(missing_ok=True)


def tidy(folder: Path, step: int) -> None:
    """Clear a folder of what a run that goes on from `step` does not want.

    Files that killed processes had not finished are deleted; later checkpoints, which are damaged,
    get another name, so that they do not count among the last ones.
    """
    for path in folder.glob(".*.tmp"):
        path.unlink(missing_ok=True)
    for later, path in list_checkpoints(folder).items():
        if later > step:
            path.rename(path.with_name(f"{path.name}.damaged"))


def save_checkpoint(path: Path, state: Mapping[str, Any]) -> None:
    """Write a checkpoint (adds `version`); see write_whole. Raises OSError if the disk is full."""
    write_whole(path, lambda temporary: torch.save({**state, "version": VERSION}, temporary))


def fault_of(path: Path, verify: bool = False) -> str | None:
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


def latest_checkpoint(folder: Path, report: Callable[[str], None] = print) -> Path | None:
    """The complete checkpoint of the highest step; damaged ones are reported and passed over."""
    for path in reversed(list_checkpoints(folder).values()):
        fault = fault_of(path, verify=True)
        if fault is None:
            return path
        report(f"{path} {fault}; trying the one before it")
    return None


def load_checkpoint(path: Path | str) -> dict[str, Any]:
    """Read a checkpoint onto the CPU; its tensors stay in the file until they are used.

    Only tensors, plain values and the published `args` namespace are admitted. Raises UserError if
    the file is missing, truncated, something else, or holds anything more.
    """
    path = Path(path)
    fault = fault_of(path)
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


def denoiser_from_config(config: Config) -> EDMPrecond:
    """The network that a configuration describes, with fresh weights."""
    model = config.model
    try:
        return build_denoiser(
            model.model_type,
            model.in_size,
            model.in_channels,
            model.num_classes,
            depth=model.depth,
            hidden_size=model.hidden_size,
            num_heads=model.num_heads,
            use_decoder=model.use_decoder,
            decoder_hidden_size=model.decoder_hidden_size,
            decoder_depth=model.decoder_depth,
            decoder_num_heads=model.decoder_num_heads,
            cond_init_std=model.cond_init_std,
            mae_loss_coef=model.mae_loss_coef,
            pad_cls_token=model.pad_cls_token,
            ext_feature_dim=model.ext_feature_dim,
            self_cond=model.self_cond,
            perturbation=config.learns_perturbation,
        )
    except ValueError as error:
        raise UserError(f"model: {error}") from error


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


def denoiser_with(weights: Mapping[str, torch.Tensor], config: Config, source: Path) -> EDMPrecond:
    """The configured network with the given weights in float32, without initialising it first."""
    with torch.device("meta"):
        denoiser = denoiser_from_config(config)
    load_weights(denoiser, {n: w.float() for n, w in weights.items()}, source, assign=True)
    return denoiser


def load_denoiser(
    path: Path | str,
    device: torch.device | str = "cpu",
    which: str = "ema",
    config: Config | None = None,
) -> tuple[EDMPrecond, Config]:
    """A trained denoiser in eval mode, and its configuration, from a .pt or .safetensors file.

    `config` is needed for published checkpoints, which hold none, and otherwise takes the place of
    the stored one. Raises UserError if the file is not what it should be.
    """
    path = Path(path)
    weights, stored = read_weights(path, which)
    config = config or stored
    if config is None:
        raise UserError(f"{path} holds no configuration; give the one it was trained with")
    denoiser = denoiser_with(weights, config, path)
    return denoiser.to(device).eval().requires_grad_(False), config


def export_safetensors(
    checkpoint: Path | str, out: Path | str, overrides: Sequence[str] = ()
) -> None:
    """Write a checkpoint's EMA weights as float16 with its configuration, for release.

    `overrides`, such as `sampling.cfg_scale=2`, set what people who use it get by default.
    """
    checkpoint, out = Path(checkpoint), Path(out)
    weights, config = read_weights(checkpoint)
    if config is None:
        raise UserError(f"{checkpoint} holds no configuration and cannot be exported")
    config = config_from_dict(config.to_dict(), str(checkpoint), overrides)
    denoiser_with(weights, config, checkpoint)  # complains now rather than at the user's
    half = {name: tensor.half().contiguous() for name, tensor in weights.items()}
    metadata = {"config": config.to_yaml(), "source": checkpoint.name}
    write_whole(out, lambda temporary: save_file(half, temporary, metadata=metadata))
