"""Metrics of given features, compared with the libraries that define them."""

import numpy as np
import pytest
import torch
from random_features import features
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric

from utils.evaluation.feature_statistics import SPLITS, ClassStats
from utils.evaluation.metrics import (
    clip_similarities,
    cmmd,
    inception_score,
    kid,
    manifold_metrics,
    r_precision,
    spread,
    vendi_score,
)


def pair(n: int = 400, m: int = 500, dim: int = 24) -> tuple[torch.Tensor, torch.Tensor]:
    """Features of two overlapping sets."""
    values = torch.from_numpy(features(n + m, dim, seed=0))
    return values[:n] + 0.4, values[n:]


@pytest.mark.parametrize(("n", "m"), [(1200, 150), (300, 400)])
def test_kid_is_that_of_torch_fidelity(n, m):
    images, reference = pair(n, m)
    theirs = kid_features_to_metric(images, reference, kid_subset_size=min(n, m, 1000))
    mean, std = kid(images, reference)
    assert mean == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-6)
    assert std == pytest.approx(theirs["kernel_inception_distance_std"], rel=1e-6)


def test_inception_score_is_that_of_torch_fidelity():
    logits = 3 * torch.randn(205, 30, generator=torch.Generator().manual_seed(0))
    stats = ClassStats()
    order = np.random.default_rng(0).permutation(200)
    for batch in np.array_split(order, 9):
        stats.update(batch, logits[batch])
    # torch-fidelity's splits are stretches of images, ours every tenth one.
    stretches = torch.cat([logits[:200][first::SPLITS] for first in range(SPLITS)])
    theirs = isc_features_to_metric(stretches, splits=SPLITS, shuffle=False)
    mean, std = inception_score(stats)
    assert mean == pytest.approx(theirs["inception_score_mean"], rel=1e-6)
    assert std == pytest.approx(theirs["inception_score_std"], rel=1e-6)


def test_inception_score_of_fewer_images_than_splits_is_one():
    stats = ClassStats()
    stats.update(np.arange(3), torch.randn(3, 5))
    assert inception_score(stats) == (pytest.approx(1), pytest.approx(0))


@pytest.mark.parametrize(("n", "m"), [(400, 500), (1300, 1100)])  # within a chunk, and beyond
def test_precision_and_recall_are_those_of_torch_fidelity(n, m):
    images, reference = pair(n, m)
    theirs = prc_features_to_metric(images, reference)
    found = manifold_metrics(images, reference)
    assert 0.05 < theirs["precision"] < 0.95
    assert found["precision"] == pytest.approx(theirs["precision"], rel=1e-6)
    assert found["recall"] == pytest.approx(theirs["recall"], rel=1e-6)


def test_density_and_coverage_are_those_of_their_definition():
    images, reference = pair(60, 50)
    found = manifold_metrics(images, reference, dense_neighbour=4)
    between = torch.cdist(reference, reference).sort(dim=1).values[:, 4]
    inside = torch.cdist(images, reference) < between  # (images, reference)
    assert found["density"] == pytest.approx(float(inside.double().sum()) / (4 * 60))
    assert found["coverage"] == pytest.approx(float(inside.any(dim=0).double().mean()))


def test_a_set_compared_with_itself_is_precise_and_covered():
    images, _ = pair()
    found = manifold_metrics(images, images.clone())
    assert found["precision"] == found["recall"] == found["coverage"] == 1
    assert found["density"] == pytest.approx(1, abs=0.05)


def test_cmmd_is_its_double_sum():
    images, reference = pair(30, 40, dim=6)
    x, y = (part / part.norm(dim=1, keepdim=True) for part in (images, reference))

    def kernel(a, b) -> float:
        return float((-torch.cdist(a, b).square() / 200).exp().mean())

    expected = 1000 * (kernel(x, x) + kernel(y, y) - 2 * kernel(x, y))
    assert cmmd(images, reference) == pytest.approx(expected, rel=1e-6)
    assert cmmd(images, images) == pytest.approx(0, abs=1e-9)


def test_clip_score_is_the_mean_cosine_in_percent():
    image = torch.tensor([[2.0, 0.0], [1.0, 1.0]])
    text = torch.tensor([[0.5, 0.0], [-3.0, 0.0]])
    assert clip_similarities(image, text).mean() == pytest.approx(100 * (1 - 0.5**0.5) / 2)


def test_r_precision_counts_images_that_find_their_own_caption():
    texts = torch.randn(200, 16, generator=torch.Generator().manual_seed(0))
    images = texts.clone()
    assert r_precision(images, texts) == 1
    images[:50] = -texts[:50]
    assert r_precision(images, texts) == 0.75


def test_r_precision_of_images_that_ignore_their_captions_is_one_in_a_hundred():
    generator = torch.Generator().manual_seed(0)
    images, texts = (torch.randn(4000, 16, generator=generator) for _ in range(2))
    assert r_precision(images, texts) == pytest.approx(0.01, abs=0.006)


def test_r_precision_does_not_count_the_same_caption_as_another():
    texts = torch.eye(4).repeat(50, 1)
    assert r_precision(texts, texts) == 1


def test_r_precision_needs_a_hundred_captions():
    assert r_precision(torch.eye(99), torch.eye(99)) is None


@pytest.mark.parametrize("size", [2, 7])
def test_images_that_are_all_alike_have_no_spread_and_count_as_one(size):
    alike = torch.randn(1, 12).expand(size, -1) * torch.arange(1, size + 1)[:, None]
    assert spread(alike) == pytest.approx(0, abs=1e-9)
    assert vendi_score(alike) == pytest.approx(1)


@pytest.mark.parametrize("size", [2, 7])
def test_images_at_right_angles_count_one_each(size):
    apart = 3 * torch.eye(12)[:size]
    assert spread(apart) == pytest.approx(1)
    assert vendi_score(apart) == pytest.approx(size)


def test_spread_and_vendi_score_are_those_of_their_definitions():
    """Three of six images are one, three are another: two kinds, and the mean over two sets."""
    first, second = torch.tensor([1.0, 0.0]), torch.tensor([0.6, 0.8])
    halves = torch.stack([first] * 3 + [second] * 3)
    pairs = [(i, j) for i in range(6) for j in range(6) if i != j]
    expected = np.mean([1 - float(halves[i] @ halves[j]) for i, j in pairs])
    assert spread(halves) == pytest.approx(expected)
    weights = np.array([0.8, 0.2])  # eigenvalues of [[1, 0.6], [0.6, 1]] / 2
    expected_vendi = np.exp(-(weights * np.log(weights)).sum())
    assert vendi_score(halves) == pytest.approx(expected_vendi)
    both = torch.stack([halves, first.expand(6, -1)])
    assert spread(both) == pytest.approx(expected / 2)
    assert vendi_score(both) == pytest.approx((expected_vendi + 1) / 2)
