"""Paths of encoders in the configuration of a checkpoint, which may have come from elsewhere."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from models.weights import looks_like_path

PROJECT = Path(__file__).resolve().parents[2]  # the folder of the scripts
NEEDED = (
    "vae",
    "clip",
    "latent_statistics",
    "image_mean",
    "prior",
)  # keys of `encoders` that sampling reads
KEYS = (*NEEDED, "inception", "dinov2")


def here_or_in_project(path: Path) -> Path:
    """Return a relative path as it is if it exists, else its place in the project's folder."""
    return path if path.exists() or not (PROJECT / path).exists() else PROJECT / path


def find_encoders(values: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Return the plain configuration of a checkpoint with the places where its encoders are.

    A path that does not exist is looked up below `folder`, which holds the checkpoint, and below
    the folders above it; then by its last name in `folder`; then in the project's folder. A path
    that is found nowhere stays as it is, and so does a name of a hub.
    """
    encoders = values.get("encoders")
    if not isinstance(encoders, Mapping):
        return dict(values)
    found = {
        key: _find(source, folder.absolute()) if key in KEYS and isinstance(source, str) else source
        for key, source in encoders.items()
    }
    return {**values, "encoders": found}


def shareable_encoders(values: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return a plain configuration that can be used from other folders, and its local encoders.

    Paths that exist become relative to the project's folder if they lie in it, else absolute. The
    list names those that sampling needs; another machine needs copies of them.
    """
    encoders = dict(values["encoders"])
    local = []
    for key in KEYS:
        name, path = _split(encoders[key] or "")
        if not path or not os.path.exists(os.path.expanduser(path)):
            continue
        place = Path(os.path.abspath(os.path.expanduser(path)))
        inside = place.is_relative_to(PROJECT)
        stored = place.relative_to(PROJECT).as_posix() if inside else str(place)
        encoders[key] = name + stored
        if key in NEEDED:
            local.append(stored)
    return {**values, "encoders": encoders}, local


def _split(source: str) -> tuple[str, str]:
    """Split `name:file`, a form of `encoders.clip`, into `name:` and file.

    The name is empty in other texts, and the file is empty if it is a tag of the hub.
    """
    name, colon, file = source.partition(":")
    if not colon:
        return "", source
    return name + colon, file if "/" in file or looks_like_path(file) else ""


def _find(source: str, folder: Path) -> str:
    """Return the source of an encoder with the first place where it exists."""
    name, text = _split(source)
    path = Path(os.path.expanduser(text))
    is_name = "/" not in text and not looks_like_path(text)
    if not text or is_name or os.path.exists(path):
        return source
    above = [] if path.is_absolute() else [parent / path for parent in (folder, *folder.parents)]
    places = [*above, folder / path.name, PROJECT / path]
    return name + str(next((place for place in places if os.path.exists(place)), text))
