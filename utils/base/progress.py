"""Progress bars in one style."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

from utils.base.processes import is_main_process


def progress(
    iterable: Iterable[Any] | None = None,
    desc: str = "",
    total: int | None = None,
    unit: str = "step",
    initial: int = 0,
    scale: bool = False,
) -> tqdm[Any]:
    """Return a progress bar, which is silent on all processes but the main one.

    `total` and `initial` are counts of `unit`, a singular; with `scale` they are shown in k, M and
    G. Without an iterable, call `.update(n)`. If the output is not a terminal, the bar writes a
    line now and then instead of rewriting itself.
    """
    on_terminal = sys.stderr.isatty()
    return tqdm(
        iterable,
        desc=f"{desc:<24}" if desc else None,
        total=total,
        unit=unit if scale else f" {unit}",
        initial=initial,
        unit_scale=scale,
        dynamic_ncols=on_terminal,
        mininterval=0.2 if on_terminal else 15,
        maxinterval=10 if on_terminal else 60,
        disable=not is_main_process(),
    )
