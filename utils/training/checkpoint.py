"""Checkpoints of a training: their names, writing them whole or not at all, finding the latest."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from utils.base.files import write_whole
from utils.pretrained.checkpoint_files import VERSION, checkpoint_fault


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


def discard_leftovers(folder: Path, step: int) -> None:
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


def latest_checkpoint(folder: Path, report: Callable[[str], None] = print) -> Path | None:
    """The complete checkpoint of the highest step; damaged ones are reported and passed over."""
    for path in reversed(list_checkpoints(folder).values()):
        fault = checkpoint_fault(path, verify=True)
        if fault is None:
            return path
        report(f"{path} {fault}; trying the one before it")
    return None
