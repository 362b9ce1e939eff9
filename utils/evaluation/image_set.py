"""All metrics of a set of images, computed in one streaming pass.

Features (feature_networks.py) -> statistics (feature_statistics.py) -> metrics (metrics.py,
frechet.py). `ImageSet` holds the statistics: batches go in, metrics against any reference come out,
and its memory does not grow with the number of images.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from utils.base.errors import UserError, note
from utils.evaluation.feature_networks import ClipFeatures, FeatureNetwork, kind_of
from utils.evaluation.feature_statistics import SAMPLE_LIMIT, ClassStats, FeatureStats, Sample
from utils.evaluation.feature_store import Rows
from utils.evaluation.frechet import (
    bootstrap_interval,
    frechet_distance,
    frechet_infinity,
    influences,
)
from utils.evaluation.metric_names import key_of
from utils.evaluation.metrics import (
    clip_similarities,
    cmmd,
    inception_score,
    kid,
    manifold_metrics,
    r_precision,
)
from utils.evaluation.references import Reference, check_dimension

if TYPE_CHECKING:
    from models.clip import ClipEncoder

MANY_IMAGES = 10_000  # from here on, papers usually ignore the bias of a Fréchet distance
# Metrics that need the features of the reference's images, or an Inception network.
NEED_FEATURES = ("kid", "kid_std", "precision", "recall", "density", "coverage", "cmmd")
NEED_INCEPTION = ("inception_score", "inception_score_std", "sfid")


class NetworkStats:
    """Statistics of one network's outputs."""

    def __init__(self, limit: int = SAMPLE_LIMIT) -> None:
        self.pooled, self.spatial = FeatureStats(), FeatureStats()
        self.classes, self.sample = ClassStats(), Sample(limit)


class ImageSet:
    """Statistics of one set of images, in the features of some networks.

    Every image has an index, its place in the whole evaluation. Metrics depend on indices and
    pixels alone; the order and the size of the batches change only the rounding.
    """

    def __init__(
        self,
        networks: Sequence[FeatureNetwork],
        clip: ClipEncoder | None = None,
        limit: int = SAMPLE_LIMIT,
    ) -> None:
        """`clip`: for CLIP scores. `limit`: images whose features are kept."""
        self.networks = list(networks)
        self.stats = [NetworkStats(limit) for _ in networks]
        tower = [n for n in networks if isinstance(n, ClipFeatures) and n.clip is clip]
        self.tower = None if clip is None else tower[0] if tower else ClipFeatures(clip)
        self.similarity = FeatureStats()  # of images and their captions, one dimension
        self.pairs = Sample(limit)  # rows: image embedding, then caption embedding
        self.seen = np.zeros(0, np.int64)  # indices, ascending

    @property
    def n(self) -> int:
        """Number of images that were added."""
        return len(self.seen)

    def features(self, images: Tensor | Sequence[Tensor], captions: Tensor | None = None) -> Rows:
        """Run all networks on some images, and return a row for each image; `add` takes the rows.

        Args:
            images: uint8 (B, 3, H, W), or a (3, H, W) for each image if sizes differ.
            captions: (B, D) embeddings of the images' captions by `clip`.
        """
        rows: Rows = {}
        embeddings = None
        for i, network in enumerate(self.networks):
            outputs = network(images)
            named = outputs._asdict().items()
            rows |= {f"{i}.{key}": value for key, value in named if value is not None}
            if network is self.tower:
                embeddings = outputs.pooled
        if captions is not None and self.tower is not None:
            if embeddings is None:
                embeddings = self.tower(images).pooled
            rows["pairs"] = torch.cat([embeddings, captions.float().cpu()], dim=1)
        return rows

    def add(
        self, features: Mapping[str, Tensor], indices: Sequence[int] | np.ndarray | Tensor
    ) -> None:
        """Add images by their rows of `features`.

        `indices`: (B,) places in the whole evaluation. Raises UserError if a feature is not finite,
        ValueError if an image was added before.
        """
        indices = np.asarray(indices, dtype=np.int64)
        self._note_seen(indices)
        for i, (network, stats) in enumerate(zip(self.networks, self.stats, strict=True)):
            pooled = features[f"{i}.pooled"]
            _check_finite(pooled, indices, network.name)
            stats.pooled.update(pooled)
            stats.sample.update(indices, pooled)
            if (spatial := features.get(f"{i}.spatial")) is not None:
                stats.spatial.update(spatial)
            if (logits := features.get(f"{i}.logits")) is not None:
                stats.classes.update(indices, logits)
        if (pairs := features.get("pairs")) is not None:
            self.similarity.update(clip_similarities(*pairs.chunk(2, dim=1))[:, None])
            self.pairs.update(indices, pairs)

    def add_batches(self, batches: Iterable[tuple[Tensor, Rows]]) -> ImageSet:
        """Add batches of indices (B,) and rows, for example a FeatureBlocks; return the set."""
        for indices, rows in batches:
            self.add(rows, indices)
        return self

    def update(
        self,
        images: Tensor | Sequence[Tensor],
        indices: Sequence[int] | Tensor,
        captions: Tensor | None = None,
    ) -> None:
        """Run all networks on images, and add these; arguments as for `features` and `add`."""
        self.add(self.features(images, captions), indices)

    def metrics(self, references: Sequence[Reference]) -> dict[str, Any]:
        """Compute all metrics against the references, one for each network, in order.

        Metrics of the first network have plain names if it is Inception. Names of all others end
        with the kind of network, for example `frechet_distance_dinov2`. A metric is None
        if it cannot be computed: kernel and manifold metrics without the reference's features,
        `sfid` and `inception_score` without an Inception network, `fid_infinity` with fewer than 4
        images a dimension, `clip_score` and `r_precision` without captions.

        Raises UserError with fewer than two images, or if a reference is of another dimension.
        """
        if self.n < 2:
            raise UserError(f"statistics need at least two images, got {self.n}")
        found: dict[str, Any] = {"n": self.n, "network": self.networks[0].name, "cmmd": None}
        for i, (network, stats, reference) in enumerate(
            zip(self.networks, self.stats, references, strict=True)
        ):
            kind = kind_of(network.name)
            metrics = _metrics_of(stats, reference, kind)
            cmmd_here = metrics.pop("cmmd")
            found["cmmd"] = cmmd_here if found["cmmd"] is None else found["cmmd"]
            found |= {
                f"{key}_{kind}" if i else key_of(key, network.name): value
                for key, value in metrics.items()
            }
        found |= {"clip_score": None, "r_precision": None}
        if self.similarity.n:
            images, captions = torch.from_numpy(self.pairs.rows).chunk(2, dim=1)
            found["clip_score"] = float(self.similarity.mu[0])
            found["r_precision"] = r_precision(images, captions)
        return found

    def references(self) -> list[Reference]:
        """Return this set as a reference for other images, one for each network.

        Raises UserError with fewer than two images.
        """
        made = []
        for network, stats in zip(self.networks, self.stats, strict=True):
            rows, spatial = stats.sample.rows, stats.spatial
            extra: dict[str, Any] = {}
            if spatial.n:
                extra = {"mu_s": spatial.mu, "sigma_s": spatial.sigma}
            mu, sigma = stats.pooled.mu, stats.pooled.sigma
            made.append(Reference(mu, sigma, self.n, network.name, features=rows, **extra))
        return made

    def _note_seen(self, indices: np.ndarray) -> None:
        seen, counts = np.unique(np.concatenate([self.seen, indices]), return_counts=True)
        if (counts > 1).any():
            raise ValueError(f"image {seen[counts > 1][0]} is counted twice")
        self.seen = seen


def _check_finite(features: Tensor, indices: np.ndarray, network: str) -> None:
    """Raise UserError for the first image whose features are not finite."""
    bad = ~features.isfinite().all(dim=1)
    if bad.any():
        raise UserError(
            f"image {indices[bad.numpy()][0]}: the feature network {network} gave NaN or infinite "
            "features; are its weights whole?"
        )


def _metrics_of(stats: NetworkStats, reference: Reference, kind: str) -> dict[str, Any]:
    """Compute the metrics of one network's features; None where something is missing."""
    pooled, rows, spatial = stats.pooled, stats.sample.rows, stats.spatial
    check_dimension(reference, len(pooled.mu))
    if not pooled.scatter.any():
        note(f"all {pooled.n} images have the same {kind} features: are they one image?")
    given = (pooled.mu, pooled.sigma, reference.mu, reference.sigma)
    distance = frechet_distance(*given)
    if not math.isfinite(distance):
        raise UserError(f"the Fréchet distance to {reference.path} is {distance}; make it again")
    low, high = bootstrap_interval(influences(rows.astype(np.float64), *given), pooled.n)
    metrics: dict[str, float | None] = {
        "frechet_distance": distance,
        "frechet_distance_low": max(distance + low, 0.0),
        "frechet_distance_high": distance + high,
        "fid_infinity": frechet_infinity(rows, reference.mu, reference.sigma),
        **dict.fromkeys(NEED_FEATURES),
        **dict.fromkeys(NEED_INCEPTION),
    }
    if reference.features is not None:
        images, others = (torch.from_numpy(x).double() for x in (rows, reference.features))
        metrics["kid"], metrics["kid_std"] = kid(images, others)
        metrics |= manifold_metrics(images, others)
        if kind == "clip":
            metrics["cmmd"] = cmmd(images, others)
    if kind in ("inception", "inception-tf"):
        metrics["inception_score"], metrics["inception_score_std"] = inception_score(stats.classes)
        if reference.mu_s is not None and reference.sigma_s is not None:
            theirs = (reference.mu_s, reference.sigma_s)
            metrics["sfid"] = frechet_distance(spatial.mu, spatial.sigma, *theirs)
    return metrics


def few_samples_note(n: int) -> str | None:
    """Return a warning about distances of `n` images, or None if there are many."""
    if n >= MANY_IMAGES:
        return None
    return (
        f"{n} images are few: Fréchet distances and CMMD come out too high, the more so the fewer; "
        "compare at equal n only, or by FID∞ and KID, which do not have this bias"
    )
