"""Progress bars in one style."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any, Never, TypeVar, overload

from tqdm import tqdm

from utils.base.processes import is_main_process

T = TypeVar("T")


# tqdm's own format, but with a rate that names its unit as people do.
FORMAT = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {pace}]"


def rate_text(rate: float | None, unit: str, scale: bool = False) -> str:
    """Return a rate, in units per second: `120 images/s`, `1.7 s/image`, `3.40MB/s`.

    scale: `unit` is short for a quantity that k, M and G stand before, for example B.
    """
    if scale:
        return f"{tqdm.format_sizeof(rate)}{unit}/s" if rate else f"? {unit}/s"
    plural = f"{unit}es" if unit.endswith(("ch", "s", "x")) else f"{unit}s"
    if not rate:
        return f"? {plural}/s"
    if rate < 1:
        return f"{1 / rate:.1f} s/{unit}"
    return f"{rate:.{0 if rate >= 100 else 1}f} {plural}/s"


class _Bar(tqdm):
    """tqdm whose format may hold `{pace}`."""

    @property
    def format_dict(self) -> Any:
        """Return tqdm's values, and the rate as `pace`."""
        values = super().format_dict
        rate, elapsed = values["rate"], values["elapsed"]
        if rate is None and elapsed:
            rate = (values["n"] - values["initial"]) / elapsed
        return {**values, "pace": rate_text(rate, values["unit"], bool(values["unit_scale"]))}


@overload
def progress(
    iterable: Iterable[T],
    desc: str = ...,
    total: int | None = ...,
    unit: str = ...,
    initial: int = ...,
    scale: bool = ...,
) -> tqdm[T]: ...


@overload
def progress(
    iterable: None = None,
    desc: str = ...,
    total: int | None = ...,
    unit: str = ...,
    initial: int = ...,
    scale: bool = ...,
) -> tqdm[Never]: ...


def progress(
    iterable: Iterable[Any] | None = None,
    desc: str = "",
    total: int | None = None,
    unit: str = "step",
    initial: int = 0,
    scale: bool = False,
) -> tqdm[Any]:
    """Return the project's progress bar; it is silent on all processes but the main one.

    `total` and `initial` are counts of `unit`, a singular; with `scale` they are shown in k, M and
    G. Without an iterable, call `.update(n)`. If the output is not a terminal, the bar writes a
    line now and then instead of redrawing itself.
    """
    on_terminal = sys.stderr.isatty()
    return _Bar(
        iterable,
        desc=f"{desc:<24}" if desc else None,
        total=total,
        unit=unit,
        initial=initial,
        unit_scale=scale,
        bar_format=FORMAT,
        dynamic_ncols=on_terminal,
        mininterval=0.2 if on_terminal else 15,
        maxinterval=10 if on_terminal else 60,
        disable=not is_main_process(),
    )
