"""Metrics from features, the third of three steps; frechet.py has the Fréchet distances.

Hand-written where torch-fidelity wants all images in one pass of its own: here features come from
disk after a kill, serve several metrics, and give bootstrap intervals.
`images`, `reference`: features (N, D) and (M, D) float64, of the evaluated images and of those that
they are compared with.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from utils.evaluation.feature_statistics import ClassStats
from utils.evaluation.frechet import bootstrap_interval

CHUNK = 1000  # rows of a distance matrix that are in memory at a time
KID_SUBSETS, KID_SUBSET_SIZE = 100, 1000
CHOICES = 100  # captions from which R-precision chooses: the image's own and 99 others
RANKS = (1, 5)  # places among all captions at which the image's own one counts as found


def kid(images: Tensor, reference: Tensor) -> tuple[float, float]:
    """Compute the kernel distance (Binkowski 2018): mean and standard deviation over 100 subsets.

    It is the unbiased squared MMD of the kernel (x y / D + 1)^3. Subsets have 1000 images, or fewer
    if there are fewer.
    """
    from torch_fidelity import metric_kid  # its import takes a second

    result = metric_kid.kid_features_to_metric(
        images,
        reference,
        kid_subsets=KID_SUBSETS,
        kid_subset_size=min(KID_SUBSET_SIZE, len(images), len(reference)),
        verbose=False,
    )
    mean, std = metric_kid.KEY_METRIC_KID_MEAN, metric_kid.KEY_METRIC_KID_STD
    return result[mean], result[std]


def inception_score(classes: ClassStats) -> tuple[float, float]:
    """Compute exp E KL(p(class | image) || p(class)) (Salimans 2016).

    Returns mean and standard deviation over ten splits.
    """
    used = classes.n > 0
    count = classes.n[used]
    p = classes.probabilities[used] / count[:, None]  # (splits, C)
    logs = np.log(p, out=np.zeros_like(p), where=p > 0)
    scores = np.exp(classes.negentropies[used] / count - (p * logs).sum(axis=1))
    return float(scores.mean()), float(scores.std())


def manifold_metrics(
    images: Tensor, reference: Tensor, neighbour: int = 3, dense_neighbour: int = 5
) -> dict[str, float]:
    """Compute precision, recall (Kynkäänniemi 2019), density and coverage (Naeem 2020).

    Each image has a ball that reaches to its `neighbour`-th nearest image of the same set; for
    density and coverage, to its `dense_neighbour`-th. Precision: fraction of images inside a ball
    of the reference. Recall: fraction of reference images inside a ball of the images. Density:
    mean number of the reference's balls around an image, divided by `dense_neighbour`. Coverage:
    fraction of the reference's balls that hold an image.
    """
    ranks = [min(k, len(reference) - 1) for k in (neighbour, dense_neighbour)]
    radii, dense_radii = _radii(reference, ranks).unbind(dim=1)
    (own_radii,) = _radii(images, [min(neighbour, len(images) - 1)]).unbind(dim=1)
    inside = balls = 0
    recalled = torch.zeros(len(reference), dtype=torch.bool)
    covered = torch.zeros(len(reference), dtype=torch.bool)
    for chunk, own in zip(images.split(CHUNK), own_radii.split(CHUNK), strict=True):
        distances = torch.cdist(chunk, reference)  # (CHUNK, M)
        inside += int((distances <= radii).any(dim=1).sum())
        balls += int((distances < dense_radii).sum())
        recalled |= (distances <= own[:, None]).any(dim=0)
        covered |= (distances < dense_radii).any(dim=0)
    return {
        "precision": inside / len(images),
        "recall": float(recalled.double().mean()),
        "density": balls / (dense_neighbour * len(images)),
        "coverage": float(covered.double().mean()),
    }


def _radii(features: Tensor, ranks: list[int]) -> Tensor:
    """Return the distance to the k-th nearest other row for each k of `ranks`: (N, len(ranks))."""
    parts = []
    for chunk in features.split(CHUNK):
        nearest = torch.cdist(chunk, features).topk(max(ranks) + 1, dim=1, largest=False).values
        parts.append(nearest[:, ranks])  # the nearest of all is itself
    return torch.cat(parts)


def cmmd(images: Tensor, reference: Tensor) -> float:
    """Compute the CLIP maximum mean discrepancy (Jayasumana 2024): 1000 MMD^2 of unit embeddings.

    The kernel is exp(-|x - y|^2 / (2 * 10^2)). Pairs of an image with itself count, as in the
    authors' code; this makes the value larger for few images.
    """
    x, y = F.normalize(images, dim=1), F.normalize(reference, dim=1)
    return 1000 * (_mean_kernel(x, x) + _mean_kernel(y, y) - 2 * _mean_kernel(x, y))


def _mean_kernel(x: Tensor, y: Tensor) -> float:
    """Return the mean of CMMD's kernel over all pairs; for unit vectors |x - y|^2 is 2 - 2 x y."""
    total = sum(float(((chunk @ y.T - 1) / 100).exp().sum()) for chunk in x.split(CHUNK))
    return total / (len(x) * len(y))


def clip_similarities(images: Tensor, texts: Tensor) -> Tensor:
    """Return 100 x cosine of each image and its text: (N, D), (N, D) -> (N,) float64.

    The mean is the CLIP score (Hessel 2021, without its factor 2.5).
    """
    return 100 * F.cosine_similarity(images.double(), texts.double())


def r_precision(images: Tensor, texts: Tensor, seed: int = 0) -> float | None:
    """Return the fraction of images closer to their own caption than to 99 others (Xu 2018).

    `images`, `texts`: (N, D) CLIP embeddings. The seed chooses the others among the captions of all
    other images. An equal caption does not count as closer. None below 100 images.
    """
    if len(images) < CHOICES:
        return None
    x, t = (F.normalize(part.double(), dim=1) for part in (images, texts))
    generator = torch.Generator().manual_seed(seed)
    right = 0
    for start in range(0, len(x), CHUNK):
        similarity = x[start : start + CHUNK] @ t.T  # (chunk, N)
        rows = torch.arange(len(similarity))
        own = similarity[rows, start + rows]
        keys = torch.rand(similarity.shape, generator=generator)
        keys[rows, start + rows] = 2.0  # never among the others
        others = keys.topk(CHOICES - 1, dim=1, largest=False).indices
        best = similarity.gather(1, others).amax(dim=1)
        right += int((own >= best - 1e-9).sum())
    return right / len(x)


def retrieval(images: Tensor, texts: Tensor, own: Tensor) -> dict[str, float]:
    """Return how often an image's own caption is the nearest, and among the five nearest.

    images: (N, D). texts: (C, D) of the distinct captions. own: (N,) int64, the caption of each
    image. Returns `retrieval_1` and `retrieval_5` in percent, and the ends of their bootstrap
    intervals (95 %) as `retrieval_1_low` and so on.
    """
    cosines = F.normalize(images.double(), dim=1) @ F.normalize(texts.double(), dim=1).T
    places = (cosines > cosines.gather(1, own[:, None])).sum(dim=1)  # 0 = the nearest
    found: dict[str, float] = {}
    for k in RANKS:
        hits = 100 * (places < k).double().numpy()
        low, high = bootstrap_interval(hits, len(hits))
        mean, key = float(hits.mean()), f"retrieval_{k}"
        found |= {key: mean, f"{key}_low": mean + low, f"{key}_high": mean + high}
    return found


def spread(embeddings: Tensor) -> float:
    """Compute the mean cosine distance between two images of a set: (…, S, D), S >= 2.

    It is 1 − cosine, averaged over all pairs, then over the sets. 0: all are alike.
    """
    similarity = _cosines(embeddings)
    size = similarity.shape[-1]
    trace = similarity.diagonal(dim1=-2, dim2=-1).sum(dim=-1)
    others = (similarity.sum(dim=(-2, -1)) - trace) / (size * (size - 1))
    return float((1 - others).mean())


def vendi_score(embeddings: Tensor) -> float:
    """Compute the Vendi score (Friedman & Dieng 2023, definition 3.1), mean over sets (…, S, D).

    It is the exponential of the entropy of the eigenvalues of K / S, with the cosines of the images
    as K: the effective number of different images, from 1 (all alike) to S (all at right angles).
    """
    similarity = _cosines(embeddings)
    values = torch.linalg.eigvalsh(similarity / similarity.shape[-1]).clamp(min=0)
    return float((-torch.xlogy(values, values).sum(dim=-1)).exp().mean())


def _cosines(embeddings: Tensor) -> Tensor:
    """Return the cosines of all pairs of each set: (…, S, D) -> (…, S, S) float64."""
    y = F.normalize(embeddings.double(), dim=-1)
    return y @ y.mT
