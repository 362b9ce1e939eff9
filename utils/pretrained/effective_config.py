"""The configuration that counts: the one given, or that of the experiment or checkpoint named."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from utils.base.errors import UserError
from utils.config.command_line import DEFAULT_CONFIG
from utils.config.load import config_from_dict, load_config
from utils.config.schema import Config
from utils.pretrained.checkpoint_files import (
    checkpoint_fault,
    list_checkpoints,
    load_checkpoint,
    stored_config,
)
from utils.pretrained.release import is_release_config, release_values

CHECKPOINTS = (".pt", ".safetensors")


def read_config(
    path: str | Path,
    overrides: Sequence[str] = (),
    require: Sequence[str] = (),
    flags: Mapping[str, Mapping[str, Any]] | None = None,
) -> Config:
    """Return the configuration of a YAML file, or the one that a checkpoint or model file holds.

    In the configuration of a release folder, encoders in the folder get their place. The arguments
    are those of `load_config`. Raises UserError as it does, or if the checkpoint holds no
    configuration.
    """
    path = Path(path)
    if path.suffix not in CHECKPOINTS and not is_release_config(path):
        return load_config(path, overrides, require, flags).chosen_by(path, overrides)
    values = release_values(path) if is_release_config(path) else stored_config(path)
    if values is None:
        raise UserError(
            f"{path} holds no configuration; give the one it was trained with (--config)"
        )
    config = config_from_dict(values, str(path), overrides, require, flags)
    return config.chosen_by(path, overrides)


def experiment_config(folder: Path) -> Path | None:
    """Return the file with the configuration of an experiment, or None.

    It is config.yaml, or else the newest complete checkpoint that holds a configuration.
    """
    written = folder / "config.yaml"
    if written.is_file():
        return written
    for path in reversed(list_checkpoints(folder / "checkpoints").values()):
        if checkpoint_fault(path) is None and "config" in load_checkpoint(path):
            return path
    return None


def config_file(
    given: str | None, experiment: Path | None = None, checkpoint: Path | None = None
) -> str:
    """Return the file whose configuration counts: the given one, or else that of what is named.

    Without all three it is the demo's. Raises UserError if the experiment has no configuration.
    """
    if given is not None:
        return given
    if experiment is None:
        return DEFAULT_CONFIG if checkpoint is None else str(checkpoint)
    found = experiment_config(experiment)
    if found is None:
        raise UserError(
            f"{experiment}: holds no config.yaml, and no checkpoint with a configuration; "
            "name another folder, or give --config"
        )
    return str(found)


def load_effective_config(args: argparse.Namespace) -> Config:
    """Return the configuration that `--config`, `--experiment_dir` and the overrides choose.

    `args.config` becomes its file, for messages. Raises UserError as `read_config` does.
    """
    args.config = config_file(args.config, args.experiment_dir)
    return read_config(args.config, getattr(args, "overrides", ()))
