"""A network and its configuration, wherever they are: checkpoint, release folder, hub, experiment.

A release folder is what `train_latent_t2f.py --export DIR` writes: the network in `denoiser/`, its
encoders in `vae/` and `clip/`, `settings/config.yaml`, and what diffusers and the hub need beside
them.
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from utils.base.errors import UserError
from utils.config.command_line import DEFAULT_CONFIG
from utils.config.load import config_from_dict, load_config
from utils.config.schema import Config
from utils.config.yaml_files import read_yaml
from utils.pretrained.checkpoint_files import (
    checkpoint_fault,
    list_checkpoints,
    load_checkpoint,
    stored_config,
)
from utils.pretrained.encoder_paths import KEYS, here_or_in_project
from utils.pretrained.hub import fetched_release

CHECKPOINTS = (".pt", ".safetensors")
INDEX = "model_index.json"  # the file by which diffusers knows a pipeline's folder
CONFIG = "settings/config.yaml"
WEIGHTS = "denoiser/diffusion_pytorch_model.safetensors"
EXPECTED = (
    "name a checkpoint (.pt, .safetensors), or a folder that train_latent_t2f.py --export has "
    "written"
)
HUB_NAME = re.compile(r"[\w][\w.-]*/[\w][\w.-]*")


class Network(NamedTuple):
    """The file of a network's weights, and the file that holds its configuration."""

    weights: Path
    config: Path


def find_network(source: str | Path) -> Network:
    """Find a network: a checkpoint, a released file, a release folder, or `owner/name` on the hub.

    A relative path that does not exist is looked up in the project's folder. A checkpoint is its
    own configuration. Raises UserError if a folder is no release, or lacks one of its files, or if
    the hub does not have it or does not answer.
    """
    path = here_or_in_project(Path(source).expanduser())
    is_file_name = path.suffix in CHECKPOINTS
    if not path.exists() and not is_file_name and HUB_NAME.fullmatch(str(source)):
        path = fetched_release(str(source))
    if not path.is_dir():
        if path.suffix != ".safetensors" and (fault := checkpoint_fault(path)):
            raise UserError(f"{source} {fault}; {EXPECTED}")
        return Network(path, path)
    if not (path / INDEX).is_file():
        raise UserError(f"{source}: is no release folder, as it holds no {INDEX}; {EXPECTED}")
    for name in (INDEX, CONFIG, WEIGHTS):
        if not (path / name).is_file():
            raise UserError(f"{source}: its file {name} is missing; copy the whole folder again")
    return Network(path / WEIGHTS, path / CONFIG)


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
    is_checkpoint = path.suffix in CHECKPOINTS or checkpoint_fault(path) is None
    if not is_checkpoint and not is_release_config(path):
        return load_config(path, overrides, require, flags).asked_by(path, overrides)
    values = release_values(path) if is_release_config(path) else stored_config(path)
    if values is None:
        raise UserError(
            f"{path} holds no configuration; give the one it was trained with (--config)"
        )
    config = config_from_dict(values, str(path), overrides, require, flags)
    return config.asked_by(path, overrides)


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

    Without all three it is the demo's. Raises UserError if the experiment has no configuration, or
    if `checkpoint` is none.
    """
    if given is not None:
        return given
    if experiment is None:
        return DEFAULT_CONFIG if checkpoint is None else str(find_network(checkpoint).config)
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


def is_release_config(path: Path) -> bool:
    """Return True if a file is the configuration of a release folder."""
    folder = path.absolute().parents[1]
    return path.absolute() == folder / CONFIG and (folder / INDEX).is_file()


def release_values(path: Path) -> dict[str, Any]:
    """Return the plain configuration of a release folder; encoders in the folder get their place.

    Raises UserError if the file holds no sections.
    """
    values, _ = read_yaml(path)
    encoders = values.get("encoders")
    for key, source in encoders.items() if isinstance(encoders, Mapping) else ():
        if isinstance(source, str) and key in KEYS and (path.parent / source).exists():
            values["encoders"] = {**values["encoders"], key: os.path.normpath(path.parent / source)}
    return values
