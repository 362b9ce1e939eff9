"""What each figure of merit is called, whether less or more of it is better, how it is printed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal, NamedTuple


class FigureInfo(NamedTuple):
    """One key of the figures that an evaluation gives."""

    label: str
    better: Literal["lower", "higher"]
    form: str = ".4g"

    def show(self, value: float | None) -> str:
        """A value for people."""
        return "–" if value is None else format(value, self.form)


# In the order in which they are shown; a record may lack any of them.
FIGURES = {
    "frechet_distance": FigureInfo("Fréchet distance", "lower"),
    "fid_infinity": FigureInfo("Fréchet distance, N → ∞", "lower"),
    "sfid": FigureInfo("sFID", "lower"),
    "kid": FigureInfo("Kernel distance", "lower", ".3g"),
    "cmmd": FigureInfo("CMMD", "lower", ".3g"),
    "inception_score": FigureInfo("Inception score", "higher"),
    "precision": FigureInfo("Precision", "higher", ".3f"),
    "recall": FigureInfo("Recall", "higher", ".3f"),
    "density": FigureInfo("Density", "higher", ".3f"),
    "coverage": FigureInfo("Coverage", "higher", ".3f"),
    "clip_score": FigureInfo("CLIP score", "higher", ".2f"),
    "r_precision": FigureInfo("R-precision", "higher", ".3f"),
}
NETWORKS = {
    "clip": "CLIP",
    "dinov2": "DINOv2",
    "inception": "Inception",
    "inception-tf": "Inception, TensorFlow's resize",
}


def network_name(network: str) -> str:
    """The name of a feature network for people; what tells apart two of a kind is left out."""
    kinds = [kind for kind in NETWORKS if network.startswith(kind)]
    return NETWORKS[max(kinds, key=len)] if kinds else network


def figure_info(key: str) -> FigureInfo | None:
    """About a key, of which `kid_dinov2` is a KID in other features; None if it is no figure."""
    if key in FIGURES:
        return FIGURES[key]
    base, _, suffix = key.rpartition("_")
    if base in FIGURES and suffix in NETWORKS:
        info = FIGURES[base]
        return info._replace(label=f"{info.label} ({network_name(suffix)})")
    return None


def figures_in(records: Iterable[Mapping[str, Any]]) -> dict[str, FigureInfo]:
    """Key -> about it, for the figures that at least one of the records has, in their order."""
    keys = {key for record in records for key, value in record.items() if value is not None}
    found = {key: info for key in keys if (info := figure_info(key))}
    order = list(FIGURES)

    def rank(key: str) -> tuple[str, int]:
        base, _, suffix = key.rpartition("_")
        return ("", order.index(key)) if key in FIGURES else (suffix, order.index(base))

    return {key: found[key] for key in sorted(found, key=rank)}
