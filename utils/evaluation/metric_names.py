"""What each figure of merit is called, whether less or more of it is better, how it is printed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

if TYPE_CHECKING:
    pass


class MetricInfo(NamedTuple):
    """One key of the figures that an evaluation gives."""

    label: str
    better: Literal["lower", "higher"]
    form: str = ".4g"

    def show(self, value: float | None) -> str:
        """A value for people."""
        return "–" if value is None else format(value, self.form)


# In the order in which they are shown; a record may lack any of them.
METRICS = {
    "frechet_distance": MetricInfo("Fréchet distance", "lower"),
    "fid_infinity": MetricInfo("Fréchet distance, N → ∞", "lower"),
    "sfid": MetricInfo("sFID", "lower"),
    "kid": MetricInfo("Kernel distance", "lower", ".3g"),
    "cmmd": MetricInfo("CMMD", "lower", ".3g"),
    "inception_score": MetricInfo("Inception score", "higher"),
    "precision": MetricInfo("Precision", "higher", ".3f"),
    "recall": MetricInfo("Recall", "higher", ".3f"),
    "density": MetricInfo("Density", "higher", ".3f"),
    "coverage": MetricInfo("Coverage", "higher", ".3f"),
    "clip_score": MetricInfo("CLIP score", "higher", ".2f"),
    "r_precision": MetricInfo("R-precision", "higher", ".3f"),
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


def metric_info(key: str) -> MetricInfo | None:
    """About a key, of which `kid_dinov2` is a KID in other features; None if it is no figure."""
    if key in METRICS:
        return METRICS[key]
    base, _, suffix = key.rpartition("_")
    if base in METRICS and suffix in NETWORKS:
        info = METRICS[base]
        return info._replace(label=f"{info.label} ({network_name(suffix)})")
    return None


def metrics_in(records: Iterable[Mapping[str, Any]]) -> dict[str, MetricInfo]:
    """Key -> about it, for the figures that at least one of the records has, in their order."""
    keys = {key for record in records for key, value in record.items() if value is not None}
    found = {key: info for key in keys if (info := metric_info(key))}
    order = list(METRICS)

    def rank(key: str) -> tuple[str, int]:
        base, _, suffix = key.rpartition("_")
        return ("", order.index(key)) if key in METRICS else (suffix, order.index(base))

    return {key: found[key] for key in sorted(found, key=rank)}


def metrics_text(record: Mapping[str, Any]) -> str:
    """What an evaluation found, for people."""
    text = f"Fréchet distance {record['frechet_distance']:.4g}"
    score = record["clip_score"]
    return text if score is None else f"{text}, CLIP score {score:.2f}"
