"""Checkpoint files: reading them without running code that they contain.

A checkpoint is a dict of tensors and plain values. Its keys are `model`, `ema`, `opt`, `step`,
`images_seen`, `rng`, `data_position`, `data_identity`, `config` and `version`. Checkpoints of the
published code (`model`, `ema`, `opt`, and `args` instead of the rest) are read too, and so are
averaged weights alone, as U-ViT's. A released model is a safetensors file: EMA weights in float16,
with the configuration in its metadata.
"""

from __future__ import annotations

import argparse
import pickle
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import safe_open
from torch import nn

from models.adapters import plain_weights
from utils.base.errors import UserError, one_line, refusing
from utils.base.finite import require_finite
from utils.config.load import config_from_dict
from utils.config.schema import Config
from utils.config.yaml_files import merged, read_yaml
from utils.pretrained.encoder_paths import find_encoders

VERSION = 1
ZIP_MAGIC = b"PK\x03\x04"
NO_CHECKPOINT = "is not a checkpoint, the .pt file of a training"


def checkpoint_fault(path: Path, verify: bool = False) -> str | None:
    """Return the reason why a file is not a complete checkpoint, or None.

    `verify` compares all checksums in the file, which takes as long as reading it.
    """
    if not path.is_file():
        return "is a folder, and no checkpoint" if path.is_dir() else "does not exist"
    with open(path, "rb") as file:
        start = file.read(len(ZIP_MAGIC))
    if start != ZIP_MAGIC:
        return NO_CHECKPOINT if start else "is empty"
    if not zipfile.is_zipfile(path):
        return "is truncated"
    try:
        with zipfile.ZipFile(path) as archive:
            names, broken = archive.namelist(), archive.testzip() if verify else None
    # The last two: a name that is no text, a method of packing that does not exist.
    except (zipfile.BadZipFile, EOFError, OSError, ValueError, RuntimeError) as error:
        return f"is damaged ({one_line(error)})"
    if broken:
        return f"is damaged (in {broken})"
    return None if any(name.endswith("/data.pkl") for name in names) else NO_CHECKPOINT


def load_checkpoint(path: Path | str) -> dict[str, Any]:
    """Read a checkpoint onto the CPU; its tensors stay in the file until they are used.

    Only tensors, plain values and the `args` namespace of the published code are admitted. Raises
    UserError if the file is missing, truncated, no checkpoint, or holds anything more.
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
            loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except UserError as error:
        if not isinstance(error.__cause__, pickle.UnpicklingError):
            raise
        raise UserError(
            f"{path} is refused: it holds more than tensors and plain values, or is damaged"
        ) from error
    state: dict[str, Any] = loaded if _has_names(loaded) else {}
    if "pos_embed" in state and all(map(torch.is_tensor, state.values())):  # of a network F alone
        state = {"ema": {f"model.{name}": weight for name, weight in state.items()}}
    held = [state[key] for key in ("model", "ema") if key in state]
    if not held or not all(_has_names(w) and all(map(torch.is_tensor, w.values())) for w in held):
        raise UserError(f"{path} is not a checkpoint: it has neither 'model' nor 'ema' weights")
    version = state.get("version", 0)
    if not isinstance(version, int) or version > VERSION:
        raise UserError(f"{path} was written by a newer version of this program; please update")
    return state


def _has_names(value: object) -> bool:
    """Return True if a value is a dict whose keys are strings."""
    return isinstance(value, dict) and all(isinstance(name, str) for name in value)


def list_checkpoints(folder: Path) -> dict[int, Path]:
    """Return step -> file for all checkpoints in a folder, in order of the steps.

    The step in a file and in its name agree. Copies under other names and numbers are left out, and
    so is all else that people and their tools put there, see `foreign_files`.
    """
    named = {int(path.stem): path for path in folder.glob("*.pt") if foreign_reason(path) is None}
    return dict(sorted(named.items()))


def foreign_files(folder: Path) -> str | None:
    """Return a line that names the files of a folder of checkpoints that are none, or None."""
    reasons = {path.name: foreign_reason(path) for path in sorted(folder.glob("*.pt"))}
    listed = [f"{name} ({reason})" for name, reason in reasons.items() if reason]
    if not listed:
        return None
    more = f" and {len(listed) - 12} more" if len(listed) > 12 else ""
    return f"{folder}: left alone, as no checkpoints of this run: {', '.join(listed[:12])}{more}"


def foreign_reason(path: Path) -> str | None:
    """Return why a file is no checkpoint that a training has written under this name, or None.

    A damaged one is none of those: its name alone tells its step.
    """
    if not (path.stem.isascii() and path.stem.isdigit() and path.stem == f"{int(path.stem):07d}"):
        return "another name"
    if not path.is_file():
        return "no file"
    if path.stat().st_size == 0:
        return "empty"
    try:
        step = load_checkpoint(path).get("step", int(path.stem))
    except UserError:
        return None
    return None if step == int(path.stem) else f"holds step {step}"


def step_of(path: Path) -> int:
    """Return the training step of a checkpoint or released model, 0 if it is not known.

    The file tells it: the step, or the name of the released checkpoint. Else its name does, as for
    checkpoints of the published code.
    """
    name = path.stem
    if path.suffix == ".safetensors":
        if not name.isdigit():
            name = Path(_read_metadata(path).get("source", "")).stem
    else:
        name = str(load_checkpoint(path).get("step", name))
    return int(name) if name.isdigit() else 0


def load_weights(
    network: nn.Module,
    weights: Mapping[str, torch.Tensor],
    source: Path,
    assign: bool = False,
    strict: bool = True,
    remedy: Callable[[], str] = lambda: "take another file",
) -> tuple[list[str], list[str]]:
    """Copy named weights into a network; return the missing names and the unknown names.

    Args:
        source: the file that the weights come from, for messages.
        assign: make the weights the network's own tensors instead of copying them.
        strict: raise UserError for missing and unknown names; otherwise only if all are missing.
        remedy: says what the user can do if they do not fit.

    Raises UserError if a weight's shape differs, or one holds NaN or infinite numbers.
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
        lines = "; it ".join(faults)
        raise UserError(f"{source} does not fit the configured model: it {lines}; {remedy()}")
    require_finite(weights, source, "its training has diverged: name an earlier checkpoint")
    network.load_state_dict(weights, assign=assign, strict=strict)
    return missing, unknown


def read_weights(path: Path, which: str = "ema") -> tuple[dict[str, torch.Tensor], Config | None]:
    """Read the weights `which` ('ema' or 'model') of a checkpoint or a released safetensors file.

    Returns them with the configuration in the file; checkpoints of the published code have none. A
    safetensors file holds EMA weights only. Weights of an adapter are merged into the others.
    Raises UserError if the file does not hold them.
    """
    if path.suffix == ".safetensors":
        return read_safetensors(path)
    state = load_checkpoint(path)
    if which not in state:
        raise UserError(f"{path} has no '{which}' weights, only {', '.join(sorted(state))}")
    return plain_weights(state[which]), _validated(state.get("config"), path)


def read_safetensors(path: Path) -> tuple[dict[str, torch.Tensor], Config | None]:
    """Read the weights and the configuration of a released model; raise UserError on damage."""
    with open_safetensors(path) as file:
        metadata = file.metadata() or {}
        if "adapter" in metadata:
            raise UserError(f"{path} is an adapter; name its base, and the adapter with --adapter")
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return weights, _validated(_parsed_config(metadata, path), path)


def stored_config(path: Path) -> dict[str, Any] | None:
    """Return the configuration that a checkpoint or released model holds, or None; read no weights.

    It is not validated yet. Its encoders are looked up, see `find_encoders`. Raises UserError if
    the file is missing or damaged.
    """
    if path.suffix == ".safetensors":
        values = _parsed_config(_read_metadata(path), path)
    else:
        values = load_checkpoint(path).get("config")
    return find_encoders(values, path.parent) if isinstance(values, Mapping) else values


def _validated(values: Any, path: Path) -> Config | None:
    """Return the configuration of the file at `path`, or None if there is none."""
    if values is None:
        return None
    if isinstance(values, Mapping):
        values = find_encoders(values, path.parent)
    return config_from_dict(values, str(path))


@contextmanager
def open_safetensors(path: Path) -> Iterator[Any]:
    """Open a safetensors file; raise UserError if it is missing or damaged."""
    if not path.is_file():
        raise UserError(f"{path} does not exist; name a file, e.g. of results/demo/checkpoints")
    if not path.stat().st_size:
        raise UserError(f"{path} is empty; copy it again")
    with (
        refusing(f"{path} is damaged or not a safetensors file"),
        safe_open(path, framework="pt") as file,
    ):
        yield file


def _read_metadata(path: Path) -> dict[str, str]:
    """Return the metadata of a safetensors file."""
    with open_safetensors(path) as file:
        return dict(file.metadata() or {})


def _parsed_config(metadata: Mapping[str, str], path: Path) -> Any:
    """Return the plain configuration in the metadata of the file at `path`, or None.

    A file NAME.yaml beside NAME.safetensors changes keys of it, without a copy of the weights.
    """
    with refusing(f"{path} is damaged or not a safetensors file"):
        values = (yaml.safe_load(metadata["config"]) or None) if "config" in metadata else None
    changes = path.with_suffix(".yaml")
    if isinstance(values, dict) and changes.is_file():
        values = merged(values, read_yaml(changes)[0])
    return values
