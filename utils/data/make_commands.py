"""The command that makes a database of a config, for messages about one that is missing."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from utils.base.errors import UserError
from utils.config.schema import Config
from utils.data.lmdb_layout import UnmadeDatabase
from utils.data.preprocess_jobs import KEYS, config_value

SCRIPTS = {
    "z": "create_latentspace_lmdb.py",
    "clip_img": "clip_encode_img.py",
    "clip_txt": "clip_encode_text.py",
}


@contextmanager
def naming_commands(config: Config) -> Iterator[None]:
    """Name the command in the message about a database of `config` that is to be made.

    Raises UserError for UnmadeDatabase.
    """
    try:
        yield
    except UnmadeDatabase as fault:
        command = command_for(fault.path, config)
        if command is None:
            raise
        raise UserError(f"{fault.path}: {fault.problem}; {fault.remedy}: {command}") from fault


def command_for(path: Path, config: Config) -> str | None:
    """Return the shell command that makes the database `path`; None if the config names none."""
    for split, keys in KEYS.items():
        # Text–image pairs train on embeddings of captions, so these are looked for first.
        for product in ("clip_txt", "clip_img", "z"):
            if config_value(config, keys[product]) != path:
                continue
            more = []
            if product == "clip_img" and re.search("te?xt", path.name):
                product, more = "clip_txt", [f"{keys['clip_txt']}={path}"]
            script = f"preprocess_scripts/{SCRIPTS[product]}"
            return shlex.join(["python", script, *config.words, "--split", split, *more])
    return None
