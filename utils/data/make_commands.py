"""The command that makes a database of a config, for messages about one that is missing."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
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
# Sections of the config that decide what a database holds and where it lies.
SECTIONS = ("data", "encoders", "model", "eval")


@contextmanager
def naming_commands(config: Config) -> Iterator[None]:
    """Name the command in the message about a database of `config` that is to be made.

    Raises UserError for UnmadeDatabase.
    """
    try:
        yield
    except UnmadeDatabase as fault:
        command = command_for(fault.path, config, sys.argv)
        if command is None:
            raise
        raise UserError(f"{fault.path}: {fault.problem}; {fault.remedy}: {command}") from fault


def command_for(path: Path, config: Config, argv: Sequence[str]) -> str | None:
    """Return the shell command that makes the database `path`; None if the config names none.

    argv: words of this process's command line. Its config and settings count for the command too.
    """
    for split, keys in KEYS.items():
        # Text–image pairs train on embeddings of captions, so these are looked for first.
        for product in ("clip_txt", "clip_img", "z"):
            if config_value(config, keys[product]) != path:
                continue
            more = []
            if product == "clip_img" and re.search("te?xt", path.name):
                product, more = "clip_txt", [f"{keys['clip_txt']}={path}"]
            script = f"preprocess_scripts/{SCRIPTS[product]}"
            words = ["python", script, *config_words(argv), "--split", split, *more]
            return shlex.join(words)
    return None


def config_words(argv: Sequence[str]) -> list[str]:
    """Return the words of a command line that choose the config and what databases hold."""
    given = dict(zip(argv, [*argv[1:], ""], strict=True))
    given |= dict(word.split("=", 1) for word in argv if re.match(r"--\w+=", word))
    settings = [word for word in argv if re.match(rf"({'|'.join(SECTIONS)})\.\w+=", word)]
    chosen = given.get("--config") or _experiments_config(given)
    return [*(["--config", chosen] if chosen else []), *settings]


def _experiments_config(given: Mapping[str, str]) -> str | None:
    """Return the config of the experiment that the options `given` name; None if there is none."""
    folder = given.get("--experiment_dir")
    if folder is None and "--exp_name" in given:
        folder = str(Path(given.get("--results_dir", "results"), given["--exp_name"]))
    written = Path(folder or "", "config.yaml")
    return str(written) if folder and written.is_file() else None
