"""Checkpoint files of a training: naming, writing, removing, finding the latest."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from utils.base.files import write_whole
from utils.pretrained.checkpoint_files import (
    VERSION,
    checkpoint_fault,
    foreign_reason,
    list_checkpoints,
)

UNFINISHED = re.compile(r"\.\d{7,}\.pt\.\d+\.tmp")  # of write_whole, not of a tool that syncs files


def checkpoint_path(folder: Path, step: int) -> Path:
    """Return the path of a step's checkpoint."""
    return folder / f"{step:07d}.pt"


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
    """Clear a folder for a run that continues from `step`.

    Unfinished files of killed processes are deleted. Checkpoints of later steps are damaged; they
    get another name, so that they do not count among the last ones.
    """
    for path in folder.glob(".*.tmp"):
        if UNFINISHED.fullmatch(path.name):
            path.unlink(missing_ok=True)
    for later, path in list_checkpoints(folder).items():
        if later > step:
            path.rename(path.with_name(f"{path.name}.damaged"))


def save_checkpoint(path: Path, state: Mapping[str, Any]) -> None:
    """Write a checkpoint (adds `version`); see write_whole. Raises OSError if the disk is full.

    Something else at its place, as a copy of another step or a folder, is renamed `….pt.other`.
    """
    if os.path.lexists(path) and foreign_reason(path):
        os.rename(path, path.with_name(f"{path.name}.other"))
    write_whole(path, lambda temporary: torch.save({**state, "version": VERSION}, temporary))


def latest_checkpoint(folder: Path, report: Callable[[str], None] = print) -> Path | None:
    """Return the complete checkpoint of the highest step; report each damaged one and skip it."""
    for path in reversed(list_checkpoints(folder).values()):
        fault = checkpoint_fault(path, verify=True)
        if fault is None:
            return path
        report(f"{path} {fault}; trying the one before it")
    return None
