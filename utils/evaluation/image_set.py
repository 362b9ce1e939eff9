"""Everything that is said about a set of images, gathered in one pass over them.

Features (feature_networks.py) -> statistics (feature_statistics.py) -> figures (metrics.py,
frechet.py). `ImageSet` holds the middle: batches go in, the figures against any reference
come out, and its memory does not grow with the number of images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from torch import Tensor

from models.clip import ClipEncoder
from utils.base.errors import UserError, note
from utils.config.schema import Config
from utils.evaluation.feature_networks import (
    ClipFeatures,
    FeatureNetwork,
    kind_of,
    load_feature_network,
)
from utils.evaluation.feature_statistics import (
    SAMPLE_LIMIT,
    ClassStats,
    FeatureStats,
    Sample,
    State,
)
from utils.evaluation.frechet import (
    bootstrap_interval,
    frechet_distance,
    frechet_infinity,
    influences,
)
from utils.evaluation.metrics import (
    clip_similarities,
    cmmd,
    inception_score,
    kid,
    manifold_metrics,
    r_precision,
)
from utils.evaluation.references import Reference, check_comparable, check_dimension, load_stats

MANY_IMAGES = 10_000  # from which on the bias of a Fréchet distance is usually left unsaid


class NetworkStats:
    """What is kept of one network's outputs."""

    def __init__(self, limit: int = SAMPLE_LIMIT) -> None:
        self.pooled, self.spatial = FeatureStats(), FeatureStats()
        self.classes, self.sample = ClassStats(), Sample(limit)


class ImageSet:
    """One set of images, as seen by some networks.

    Every image has an index, its place in the whole evaluation; figures depend on indices and
    pixels alone, not on the order, the batch size or the number of processes.
    """

    def __init__(
        self,
        networks: Sequence[FeatureNetwork],
        clip: ClipEncoder | None = None,
        limit: int = SAMPLE_LIMIT,
    ) -> None:
        """`clip`: for CLIP scores. `limit`: images whose features are kept."""
        self.networks = list(networks)
        self.limit = limit
        self.stats = [NetworkStats(limit) for _ in networks]
        tower = [n for n in networks if isinstance(n, ClipFeatures) and n.clip is clip]
        self.tower = None if clip is None else tower[0] if tower else ClipFeatures(clip)
        self.similarity = FeatureStats()  # of images and their captions, one dimension
        self.pairs = Sample(limit)  # rows of image embedding, then caption embedding
        self.seen = np.zeros(0, np.int64)  # indices, ascending

    @property
    def n(self) -> int:
        return len(self.seen)

    def features(
        self, images: Tensor | Sequence[Tensor], captions: Tensor | None = None
    ) -> dict[str, Tensor]:
        """What all networks give for some images, a row each; nothing is kept.

        Args:
            images: uint8 (B, 3, H, W), or a (3, H, W) for each image if sizes differ.
            captions: (B, D) embeddings of the images' captions by `clip`.
        """
        rows: dict[str, Tensor] = {}
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
        """Take in what `features` gave for images that are not there yet.

        `indices`: (B,) places in the whole evaluation. Raises UserError if a network gave features
        that are not finite.
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

    def update(
        self,
        images: Tensor | Sequence[Tensor],
        indices: Sequence[int] | np.ndarray | Tensor,
        captions: Tensor | None = None,
    ) -> None:
        """Both at once: add images that are not there yet."""
        self.add(self.features(images, captions), indices)

    def merge(self, other: ImageSet) -> None:
        """Add another set, of the same networks and of other images."""
        self._note_seen(other.seen)
        for name, part in self._parts().items():
            part.merge(other._parts()[name])

    def gathered(self) -> ImageSet:
        """The set of all processes together; all of them call this, and all get it."""
        whole = ImageSet(self.networks, None, self.limit)
        for state in gather_object([self.state_dict()]):
            part = ImageSet(self.networks, None, self.limit)
            part.load_state_dict(state)
            whole.merge(part)
        return whole

    def state_dict(self) -> State:
        """Everything, as tensors."""
        state = {"seen": torch.from_numpy(self.seen)}
        for name, part in self._parts().items():
            state |= {f"{name}.{key}": value for key, value in part.state_dict().items()}
        return state

    def load_state_dict(self, state: State) -> None:
        """Take the place of what is there; raises UserError if the state has other networks."""
        parts = self._parts()
        if {key.rpartition(".")[0] for key in state} - {""} != parts.keys():
            raise UserError("saved features are of other feature networks; delete them")
        self.seen = state["seen"].numpy().copy()
        for name, part in parts.items():
            part.load_state_dict(
                {k.rpartition(".")[2]: v for k, v in state.items() if k.rpartition(".")[0] == name}
            )

    def figures(self, references: Sequence[Reference]) -> dict[str, Any]:
        """All figures against the references, one for each network and in the same order.

        The first one's have plain names, of the others `_<kind of network>` is added, for example
        `frechet_distance_dinov2`. What cannot be told is None: kernel and manifold figures without
        the reference's features, `sfid` and `inception_score` without an Inception network,
        `fid_infinity` with fewer than 4 images a dimension, `clip_score` and `r_precision` without
        captions.

        Raises UserError with fewer than two images, or if a reference is of another dimension.
        """
        if self.n < 2:
            raise UserError(f"statistics need at least two images, got {self.n}")
        found: dict[str, Any] = {"n": self.n, "network": self.networks[0].name, "cmmd": None}
        for i, (network, stats, reference) in enumerate(
            zip(self.networks, self.stats, references, strict=True)
        ):
            kind = kind_of(network.name)
            figures = _figures_of(stats, reference, kind)
            cmmd_here = figures.pop("cmmd")
            found["cmmd"] = cmmd_here if found["cmmd"] is None else found["cmmd"]
            found |= {f"{key}_{kind}" if i else key: value for key, value in figures.items()}
        found |= {"clip_score": None, "r_precision": None}
        if self.similarity.n:
            images, captions = torch.from_numpy(self.pairs.rows).chunk(2, dim=1)
            found["clip_score"] = float(self.similarity.mu[0])
            found["r_precision"] = r_precision(images, captions)
        return found

    def references(self) -> list[Reference]:
        """This set as what others are compared with, for each network; raises as `figures`."""
        made = []
        for network, stats in zip(self.networks, self.stats, strict=True):
            pooled, spatial = stats.pooled, stats.spatial
            reference = Reference(
                pooled.mu, pooled.sigma, self.n, network.name, features=stats.sample.rows
            )
            if spatial.n:
                reference = replace(reference, mu_s=spatial.mu, sigma_s=spatial.sigma)
            made.append(reference)
        return made

    def _parts(self) -> dict[str, FeatureStats | ClassStats | Sample]:
        parts = {"similarity": self.similarity, "pairs": self.pairs}
        for i, (network, stats) in enumerate(zip(self.networks, self.stats, strict=True)):
            parts |= {f"{i}.{network.name}.{key}": part for key, part in vars(stats).items()}
        return parts

    def _note_seen(self, indices: np.ndarray) -> None:
        seen, counts = np.unique(np.concatenate([self.seen, indices]), return_counts=True)
        if (counts > 1).any():
            raise ValueError(f"image {seen[counts > 1][0]} is counted twice")
        self.seen = seen


def _check_finite(features: Tensor, indices: np.ndarray, network: str) -> None:
    bad = ~features.isfinite().all(dim=1)
    if bad.any():
        raise UserError(
            f"image {indices[bad.numpy()][0]}: the feature network {network} gave NaN or infinite "
            "features; are its weights whole?"
        )


def _figures_of(stats: NetworkStats, reference: Reference, kind: str) -> dict[str, Any]:
    """The figures of one network."""
    pooled = stats.pooled
    check_dimension(reference, len(pooled.mu))
    if not pooled.scatter.any():
        note(f"all {pooled.n} images have the same {kind} features: are they one picture?")
    given = (pooled.mu, pooled.sigma, reference.mu, reference.sigma)
    distance = frechet_distance(*given)
    rows = stats.sample.rows
    low, high = bootstrap_interval(influences(rows.astype(np.float64), *given), pooled.n)
    figures: dict[str, Any] = {
        "frechet_distance": distance,
        "frechet_distance_low": max(distance + low, 0.0),
        "frechet_distance_high": distance + high,
        "fid_infinity": frechet_infinity(rows, reference.mu, reference.sigma),
        **dict.fromkeys(("kid", "kid_std", "precision", "recall", "density", "coverage", "cmmd")),
    }
    if reference.features is not None:
        images, others = (torch.from_numpy(x).double() for x in (rows, reference.features))
        figures["kid"], figures["kid_std"] = kid(images, others)
        figures |= manifold_metrics(images, others)
        if kind == "clip":
            figures["cmmd"] = cmmd(images, others)
    if kind in ("inception", "inception-tf"):
        score, deviation = inception_score(stats.classes)
        figures |= {"inception_score": score, "inception_score_std": deviation, "sfid": None}
        if reference.mu_s is not None:
            spatial = stats.spatial
            figures["sfid"] = frechet_distance(
                spatial.mu, spatial.sigma, reference.mu_s, reference.sigma_s
            )
    else:
        figures |= dict.fromkeys(("inception_score", "inception_score_std", "sfid"))
    return figures


def load_judges(
    config: Config, device: torch.device | str = "cpu", clip: ClipEncoder | None = None
) -> tuple[list[FeatureNetwork], list[Reference]]:
    """What a config's images are judged by: feature networks, and a reference for each.

    The first are `eval.feature_network` and `eval.ref_path`, then come `eval.more_ref_paths`, whose
    files say which network they are of. Raises UserError if something is missing or does not fit.
    """
    resolution = config.data.resolution
    networks = [load_feature_network(config, device, clip)]
    references = [load_stats(config.eval.ref_path)]
    for path in config.eval.more_ref_paths:
        reference = load_stats(path)
        if reference.network is None:
            raise UserError(
                f"{path}: does not say which network it is of, so it can only be eval.ref_path"
            )
        networks.append(load_feature_network(config, device, clip, kind_of(reference.network)))
        references.append(reference)
    for network, reference in zip(networks, references, strict=True):
        check_comparable(reference, network.name, resolution, reference.path)
    kinds = [kind_of(network.name) for network in networks]
    if len(set(kinds)) < len(kinds):
        raise UserError(f"eval.more_ref_paths: two references of the network {kinds[-1]}")
    return networks, references


def few_samples_note(n: int) -> str | None:
    """What to tell whoever reads distances of `n` images, or None if there are many."""
    if n >= MANY_IMAGES:
        return None
    return (
        f"{n} images are few: Fréchet distances and CMMD come out too high, the more so the fewer; "
        "compare at equal n only, or by FID∞ and KID, which have no such bias"
    )
