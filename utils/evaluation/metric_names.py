"""Names of the metrics for people, the better direction of each, and its number format."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal, NamedTuple, get_args

from models.choices import FeatureNetworkKind


class MetricInfo(NamedTuple):
    """Label, better direction and number format of one metric."""

    label: str
    better: Literal["lower", "higher"]
    form: str = ".4g"

    def show(self, value: float | None) -> str:
        """Format a value for people."""
        return "–" if value is None else format(value, self.form)


# In the order of tables; a record may lack any of them.
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
    "variety": MetricInfo("Variety", "higher", ".3f"),
    "vendi_score": MetricInfo("Vendi score", "higher", ".2f"),
}
NETWORKS: dict[FeatureNetworkKind, str] = {
    "clip": "CLIP",
    "dinov2": "DINOv2",
    "inception": "Inception",
    "inception-tf": "Inception, TensorFlow's resize",
}


def network_name(network: str) -> str:
    """Return the label of a feature network, or `network` itself if its kind is unknown."""
    kind = kind_of_network(network)
    return network if kind is None else NETWORKS[kind]


def kind_of_network(name: str) -> FeatureNetworkKind | None:
    """Return the kind of the network that has this `FeatureNetwork.name`; None if unknown."""
    kinds: tuple[FeatureNetworkKind, ...] = get_args(FeatureNetworkKind)
    for kind in sorted(kinds, key=len, reverse=True):  # inception-tf before inception
        if name == kind or name.startswith(f"{kind}-"):
            return kind
    return None


def metric_info(key: str) -> MetricInfo | None:
    """Return the facts about a metric, with or without a network (`kid_dinov2`), else None."""
    if key in METRICS:
        return METRICS[key]
    base, _, suffix = key.rpartition("_")
    if base in METRICS and suffix in NETWORKS:
        info = METRICS[base]
        return info._replace(label=f"{info.label} ({network_name(suffix)})")
    return None


def metrics_in(records: Iterable[Mapping[str, Any]]) -> dict[str, MetricInfo]:
    """Return key -> facts of the metrics that at least one record has, in the order of tables."""
    keys = {key for record in records for key, value in record.items() if value is not None}
    found = {key: info for key in keys if (info := metric_info(key))}
    order = list(METRICS)

    def rank(key: str) -> tuple[str, int]:
        base, _, suffix = key.rpartition("_")
        return ("", order.index(key)) if key in METRICS else (suffix, order.index(base))

    return {key: found[key] for key in sorted(found, key=rank)}


def metrics_text(record: Mapping[str, Any]) -> str:
    """Format Fréchet distance and CLIP score of a record in one short line."""
    text = f"Fréchet distance {record['frechet_distance']:.4g}"
    score = record["clip_score"]
    return text if score is None else f"{text}, CLIP score {score:.2f}"
