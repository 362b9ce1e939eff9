"""The part that this process plays among the processes of a job."""

from __future__ import annotations

import os


def is_main_process() -> bool:
    """Return True if this process is the one that prints and writes (launchers set RANK)."""
    return int(os.environ.get("RANK") or 0) == 0


def leave_processes() -> None:
    """Leave the group of processes if this one has joined it; a script calls this at its end.

    The group's threads then end before the interpreter does. A thread that outlives it aborts the
    process, although all work is done.
    """
    import torch.distributed  # not above: scripts that join nothing start without it

    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
