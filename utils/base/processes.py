"""Which process this is."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass


def is_main_process() -> bool:
    """Whether this process is the one that talks and writes (launchers set RANK)."""
    return int(os.environ.get("RANK", 0)) == 0
