"""A trained network wherever it is: a file, a release folder, or a release on the hub.

A release folder is what `train_latent_t2f.py --export DIR` writes: the network in `denoiser/`, its
encoders in `vae/` and `clip/`, `settings/config.yaml`, and what diffusers and the hub need beside
them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from utils.base.errors import UserError
from utils.config.yaml_files import read_yaml
from utils.pretrained.encoder_paths import KEYS, here_or_in_project
from utils.pretrained.hub import fetched_release

INDEX = "model_index.json"  # the file by which diffusers knows a pipeline's folder
CONFIG = "settings/config.yaml"
WEIGHTS = "denoiser/diffusion_pytorch_model.safetensors"
REQUIRED = (INDEX, CONFIG, WEIGHTS)
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
    is_file_name = path.suffix in (".pt", ".safetensors")
    if not path.exists() and not is_file_name and HUB_NAME.fullmatch(str(source)):
        path = fetched_release(str(source))
    if not path.is_dir():
        return Network(path, path)
    if not (path / INDEX).is_file():
        raise UserError(
            f"{source}: is no release folder, as it holds no {INDEX}; name a checkpoint (.pt, "
            ".safetensors), or a folder that train_latent_t2f.py --export has written"
        )
    for name in REQUIRED:
        if not (path / name).is_file():
            raise UserError(f"{source}: its file {name} is missing; copy the whole folder again")
    return Network(path / WEIGHTS, path / CONFIG)


def is_release_config(path: Path) -> bool:
    """Return True if a file is the configuration of a release folder."""
    folder = path.absolute().parents[1]
    return path.absolute() == folder / CONFIG and (folder / INDEX).is_file()


def release_values(path: Path) -> dict[str, Any]:
    """Return the plain configuration of a release folder; encoders in the folder get their place.

    The file names encoders relative to its own folder.
    Raises UserError if the file holds no sections.
    """
    values, _ = read_yaml(path)
    encoders = values.get("encoders")
    if isinstance(encoders, Mapping):
        inside = {
            key: os.path.normpath(path.parent / source)
            for key, source in encoders.items()
            if isinstance(source, str) and key in KEYS and (path.parent / source).exists()
        }
        values["encoders"] = {**encoders, **inside}
    return values
