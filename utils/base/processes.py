"""The part that this process plays among the processes of a job."""

from __future__ import annotations

import os


def is_main_process() -> bool:
    """Return True if this process is the one that prints and writes (launchers set RANK)."""
    return int(os.environ.get("RANK") or 0) == 0
