"""The files of an audit: where they lie, and the verdict that they hold."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

from utils.base.errors import note
from utils.config.schema import Config

JSON, PAGE, FOLDER = "audit.json", "audit.html", "audit"


class Sentence(NamedTuple):
    """A sentence of the verdict. go: nothing has to change."""

    go: bool
    text: str


def audit_folder(config: Config) -> Path:
    """Return the folder of a config's audit: beside its latents, or below results/."""
    root = config.data.root
    return Path("results", FOLDER) if root is None else root.parent / FOLDER


class Written(NamedTuple):
    """An audit that was written: its page, and its sentences."""

    page: Path
    sentences: list[Sentence]


def find_audit(experiment: Path, config: Config, clip: str) -> Written | None:
    """Return the audit in the folder of an experiment, or else that of the config's data.

    clip: identity of the CLIP in use. None if there is no audit, or one of another CLIP. A note
    names an audit that cannot be read.
    """
    for folder in (experiment, experiment / FOLDER, audit_folder(config)):
        if not (file := folder / JSON).is_file():
            continue
        try:
            values = json.loads(file.read_text(encoding="utf-8"))
            sentences = [Sentence(**sentence) for sentence in values["verdict"].values()]
            is_same = values["encoders"]["clip"] == clip
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as fault:
            note(f"{file}: is no audit ({fault}); it is left out of the report")
            continue
        if is_same:
            return Written(folder / PAGE, sentences)
    return None
