"""The style of the plots."""

from __future__ import annotations

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from utils.base.files import write_whole


def style_axis(axis: Axes, title: str, hint: str = "") -> None:
    """The project's look: title on the left, a hint on the right, a light grid, no box."""
    axis.set_title(title, fontsize=12, loc="left")
    axis.set_title(hint, fontsize=9, loc="right", color="0.45")
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)


def save_plot(figure: Figure, path: Path) -> None:
    """Write a PNG, whole or not at all."""
    write_whole(path, lambda temporary: figure.savefig(temporary, dpi=150, format="png"))
