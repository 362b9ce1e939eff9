"""Names of the metrics for people, the better direction of each, and its number format."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal, NamedTuple

from models.choices import FeatureNetworkKind


class MetricInfo(NamedTuple):
    """Label, better direction and number format of one metric."""

    label: str
    better: Literal["lower", "higher", "near 1"]
    form: str = ".4g"

    def best(self, values: Iterable[float]) -> float:
        """Return the best of some values."""
        if self.better == "near 1":
            return min(values, key=lambda value: abs(value - 1))
        return min(values) if self.better == "lower" else max(values)

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
    "copies": MetricInfo("Copies", "lower", ".1%"),
    "training_distance": MetricInfo("Training distance", "near 1", ".3f"),
}
COPIES_ALARM = 1e-3  # p-value of `copies` below which they are no chance
# Those that depend on the feature network, whose kind their keys name; see `key_of`.
OF_NETWORK = {
    *("frechet_distance", "frechet_distance_low", "frechet_distance_high", "fid_infinity", "sfid"),
    *("kid", "kid_std", "inception_score", "inception_score_std"),
    *("precision", "recall", "density", "coverage"),
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
    for kind in sorted(NETWORKS, key=len, reverse=True):  # inception-tf before inception
        if name == kind or name.startswith(f"{kind}-"):
            return kind
    return None


def metric_info(key: str) -> MetricInfo | None:
    """Return the facts about a metric, with or without a network (`kid_dinov2`), else None."""
    base, suffix = _parts(key)
    if base not in METRICS or suffix not in ("", *NETWORKS):
        return None
    info = METRICS[base]
    return info._replace(label=f"{info.label} ({network_name(suffix)})") if suffix else info


def _parts(key: str) -> tuple[str, str]:
    """Return the metric of a key, and the network that it names: `kid_clip` -> kid, clip."""
    base, _, suffix = key.rpartition("_")
    return (key, "") if key in METRICS else (base, suffix)


def key_of(metric: str, network: str) -> str:
    """Return the key of a metric in the features of a network, `FeatureNetwork.name`.

    With Inception it is the metric's name, and `frechet_distance` is FID. Otherwise it ends with
    the kind of network, for example `frechet_distance_clip`, which no table mixes with FID.
    """
    kind = kind_of_network(network)
    is_plain = metric not in OF_NETWORK or kind in (None, "inception", "inception-tf")
    return metric if is_plain else f"{metric}_{kind}"


def distance_of(record: Mapping[str, Any]) -> float:
    """Return the Fréchet distance of a record, in the features of its network."""
    return float(record[key_of("frechet_distance", record["network"])])


def end_key(key: str, end: str) -> str:
    """Return the key of the `low` or `high` end, or of the `std`, of a metric."""
    base, suffix = _parts(key)
    return f"{base}_{end}_{suffix}" if suffix and base in METRICS else f"{key}_{end}"


def interval_text(record: Mapping[str, Any], key: str) -> str:
    """Format the interval of a metric, or its standard deviation; empty if it has neither."""
    low, high, deviation = (record.get(end_key(key, end)) for end in ("low", "high", "std"))
    show = METRICS[_parts(key)[0]].show
    if deviation:
        return f"± {show(deviation)}"
    return "" if low is None else f"{show(low)} – {show(high)}"


def with_network_names(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record with the keys of `key_of`; old ones are plain whatever their network."""
    return {key_of(key, str(record.get("network"))): value for key, value in record.items()}


def metrics_in(records: Iterable[Mapping[str, Any]]) -> dict[str, MetricInfo]:
    """Return key -> facts of the metrics that at least one record has, in the order of tables.

    Metrics of further networks come after those of the records' own ones.
    """
    records = list(records)
    own = {kind_of_network(str(record.get("network"))) for record in records}
    keys = {key for record in records for key, value in record.items() if value is not None}
    found = {key: info for key in keys if (info := metric_info(key))}
    order = list(METRICS)

    def rank(key: str) -> tuple[str, int, str]:
        base, suffix = _parts(key)
        return "" if suffix in own else suffix, order.index(base), suffix

    return {key: found[key] for key in sorted(found, key=rank)}


def metrics_text(record: Mapping[str, Any]) -> str:
    """Format Fréchet distance and CLIP score of a record in one short line."""
    key = key_of("frechet_distance", str(record.get("network")))
    about = metric_info(key) or METRICS["frechet_distance"]
    text = f"{about.label} {record[key]:.4g}"
    score = record["clip_score"]
    text = text if score is None else f"{text}, CLIP score {score:.2f}"
    return f"{text}; {copies_found(record)}" if copies_found(record) else text


def copies_found(record: Mapping[str, Any]) -> str:
    """Return "N of M images are copies" if so many are not there by chance, else nothing."""
    kind = "" if record.get("copies") is not None else "_clip"
    if record.get(f"copies_p{kind}", 1) >= COPIES_ALARM:
        return ""
    number = record["copies_n"]
    return f"{round(record[f'copies{kind}'] * number)} of {number:,} images are copies"
