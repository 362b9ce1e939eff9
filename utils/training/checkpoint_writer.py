"""Writing of checkpoints beside the training: one at a time, with retries until it succeeds."""

from __future__ import annotations

import errno
import shutil
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from utils.training.checkpoint import checkpoint_path, remove_old, save_checkpoint
from utils.training.run_log import RunLog

MARGIN = 1_000_000  # bytes of a checkpoint that are not tensors, and a little room
LONGEST_PAUSE = 60.0  # seconds between two attempts


class CheckpointWriter:
    """Writer of states, in a thread, while training goes on.

    A write that fails, for example on a full disk, is reported. It is tried again after 1, 2, 4, …
    and at last every 60 seconds, until it succeeds or a newer state takes its place.
    """

    def __init__(
        self,
        folder: Path,
        log: RunLog,
        keep_last: int | None = None,
        keep_every: int | None = None,
    ) -> None:
        """log: its lines are brought to disk before each checkpoint.

        keep_last, keep_every: see remove_old.
        """
        self._folder, self._log = folder, log
        self._keep = (keep_last, keep_every)
        self._thread: threading.Thread | None = None
        self._give_up = threading.Event()
        self._pending = False

    def write(self, step: int, state: Mapping[str, Any], *, keep_older: bool = False) -> None:
        """Start to write a state, which nobody else may change any more.

        Waits for a write in progress. Gives up an older state that waits for its next attempt.
        keep_older: remove no checkpoint afterwards.
        """
        self._stop_trying()
        self._give_up.clear()
        self._pending = True
        keep = (None, None) if keep_older else self._keep
        task = (step, state, keep)
        self._thread = threading.Thread(target=self._try, args=task, name="checkpoint")
        self._thread.start()

    def wait(self, patience: float) -> bool:
        """Wait up to `patience` seconds for the write; return True if the state is on disk."""
        if self._thread is not None:
            self._thread.join(patience)
        return not self._pending

    def close(self, patience: float) -> bool:
        """Wait like `wait`, then stop retrying; return True if the state is on disk."""
        self.wait(patience)
        self._stop_trying()
        return not self._pending

    def _stop_trying(self) -> None:
        self._give_up.set()
        if self._thread is not None:
            self._thread.join()

    def _try(
        self, step: int, state: Mapping[str, Any], keep: tuple[int | None, int | None]
    ) -> None:
        path, pause = checkpoint_path(self._folder, step), 1.0
        while True:
            try:
                self._log.sync()
                _expect_room(path.parent, state)
                save_checkpoint(path, state)
                remove_old(self._folder, *keep)
            except (OSError, RuntimeError) as error:  # torch's own writer raises the latter
                reason = str(error).splitlines()[0]
                self._log.info(
                    f"WARNING: {path} could not be written: {reason}; training goes on, "
                    f"next attempt in {pause:.0f} s"
                )
            else:
                self._pending = False
                return
            end, pause = time.monotonic() + pause, min(2 * pause, LONGEST_PAUSE)
            while time.monotonic() < end:
                if self._give_up.wait(0.2) or not threading.main_thread().is_alive():
                    return


def _expect_room(folder: Path, state: Mapping[str, Any]) -> None:
    """Raise OSError unless the disk has room for a state."""
    folder.mkdir(parents=True, exist_ok=True)
    needed, free = nbytes(state) + MARGIN, shutil.disk_usage(folder).free
    if needed > free:
        text = f"no space: it takes {needed / 1e6:.1f} MB and the disk has {free / 1e6:.1f} MB"
        raise OSError(errno.ENOSPC, text)


def nbytes(value: Any) -> int:
    """Count the bytes of all tensors in nested dicts and lists."""
    if isinstance(value, torch.Tensor):
        return value.nbytes
    if isinstance(value, Mapping):
        return sum(nbytes(v) for v in value.values())
    return sum(nbytes(v) for v in value) if isinstance(value, list | tuple) else 0
