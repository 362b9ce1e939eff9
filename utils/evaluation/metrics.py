"""Figures of merit from features, the third of three steps; Fréchet distances: frechet.py.

All are pure functions. `images` are the features of the images that are judged, `reference` those
that they are compared with, (N, D) and (M, D) tensors of float64.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from utils.evaluation.feature_statistics import ClassStats

CHUNK = 1000  # rows of a matrix of distances that exist at a time
KID_SUBSETS, KID_SUBSET_SIZE = 100, 1000
CHOICES = 100  # captions among which R-precision looks for the right one


def kid(images: Tensor, reference: Tensor) -> tuple[float, float]:
    """Kernel distance (Binkowski 2018), mean and standard deviation over 100 subsets.

    The unbiased squared MMD of the kernel (x y / D + 1)^3; subsets have 1000 images, or as many as
    there are.
    """
    from torch_fidelity import metric_kid  # a second at import

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
    """exp E KL(p(class | image) || p(class)) (Salimans 2016), mean and std over ten splits."""
    used = classes.n > 0
    count = classes.n[used]
    p = classes.probabilities[used] / count[:, None]  # (splits, C)
    logs = np.log(p, out=np.zeros_like(p), where=p > 0)
    scores = np.exp(classes.negentropies[used] / count - (p * logs).sum(axis=1))
    return float(scores.mean()), float(scores.std())


def manifold_metrics(
    images: Tensor, reference: Tensor, neighbour: int = 3, dense_neighbour: int = 5
) -> dict[str, float]:
    """Precision and recall (Kynkaanniemi 2019), density and coverage (Naeem 2020).

    Balls reach from each image to its `neighbour`-th nearest of the same set (the second pair of
    figures: `dense_neighbour`-th). Precision: share of images inside a ball of the reference;
    recall: the converse; density: balls of the reference that an image is in, over
    `dense_neighbour`; coverage: share of the reference's balls that hold an image.
    """
    ranks = [min(k, len(reference) - 1) for k in (neighbour, dense_neighbour)]
    reach, dense_reach = _radii(reference, ranks).unbind(dim=1)
    (own_reach,) = _radii(images, [min(neighbour, len(images) - 1)]).unbind(dim=1)
    inside = balls = 0
    recalled = torch.zeros(len(reference), dtype=torch.bool)
    covered = torch.zeros(len(reference), dtype=torch.bool)
    for chunk, own in zip(images.split(CHUNK), own_reach.split(CHUNK), strict=True):
        distances = torch.cdist(chunk, reference)  # (CHUNK, M)
        inside += int((distances <= reach).any(dim=1).sum())
        balls += int((distances < dense_reach).sum())
        recalled |= (distances <= own[:, None]).any(dim=0)
        covered |= (distances < dense_reach).any(dim=0)
    return {
        "precision": inside / len(images),
        "recall": float(recalled.double().mean()),
        "density": balls / (dense_neighbour * len(images)),
        "coverage": float(covered.double().mean()),
    }


def _radii(features: Tensor, ranks: list[int]) -> Tensor:
    """Distance of each to its k-th nearest other one, for each k of `ranks`: (N, len(ranks))."""
    parts = []
    for chunk in features.split(CHUNK):
        nearest = torch.cdist(chunk, features).topk(max(ranks) + 1, dim=1, largest=False).values
        parts.append(nearest[:, ranks])  # the nearest of all is itself
    return torch.cat(parts)


def cmmd(images: Tensor, reference: Tensor) -> float:
    """CLIP maximum mean discrepancy (Jayasumana 2024): 1000 MMD^2 of unit CLIP embeddings.

    The kernel is exp(-|x - y|^2 / (2 * 10^2)); as in its authors' code pairs of an image with
    itself count, which makes few images look farther away.
    """
    x, y = F.normalize(images, dim=1), F.normalize(reference, dim=1)
    return 1000 * (_mean_kernel(x, x) + _mean_kernel(y, y) - 2 * _mean_kernel(x, y))


def _mean_kernel(x: Tensor, y: Tensor) -> float:
    """Mean of CMMD's kernel over all pairs; of unit vectors |x - y|^2 is 2 - 2 x y."""
    total = sum(float(((chunk @ y.T - 1) / 100).exp().sum()) for chunk in x.split(CHUNK))
    return total / (len(x) * len(y))


def clip_similarities(images: Tensor, texts: Tensor) -> Tensor:
    """100 x cosine between each image and its text: (N, D), (N, D) -> (N,) float64."""
    return 100 * F.cosine_similarity(images.double(), texts.double())


def clip_score(images: Tensor, texts: Tensor) -> float:
    """Mean cosine x 100 of paired (N, D) embeddings (Hessel 2021, without its factor 2.5)."""
    return float(clip_similarities(images, texts).mean())


def r_precision(images: Tensor, texts: Tensor, seed: int = 0) -> float | None:
    """Share of images that are closer to their own caption than to 99 others (Xu 2018).

    (N, D), (N, D) CLIP embeddings; the others are drawn by seed from the captions of the other
    images. One that equals the own caption does not count against it. None below 100 images.
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
        keys[rows, start + rows] = 2.0  # never drawn
        others = keys.topk(CHOICES - 1, dim=1, largest=False).indices
        best = similarity.gather(1, others).amax(dim=1)
        right += int((own >= best - 1e-9).sum())
    return right / len(x)
