"""Progress bars."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING

from tqdm import tqdm

if TYPE_CHECKING:
    pass
from utils.base.processes import is_main_process


def progress(
    iterable: Iterable | None = None,
    desc: str = "",
    total: int | None = None,
    unit: str = "it",
    initial: int = 0,
    scale: bool = False,
) -> tqdm:
    """The project's one progress bar style; silent on every process but the first.

    `total` and `initial` are counts of `unit`, shown in k, M and G if `scale`. Without an iterable,
    call `.update(n)`.
    Output that is not a terminal gets a line now and then instead of a redrawn bar.
    """
    on_terminal = sys.stderr.isatty()
    return tqdm(
        iterable,
        desc=f"{desc:<24}" if desc else None,
        total=total,
        unit=f" {unit}",
        initial=initial,
        unit_scale=scale,
        dynamic_ncols=on_terminal,
        mininterval=0.2 if on_terminal else 15,
        maxinterval=10 if on_terminal else 60,
        disable=not is_main_process(),
    )
