"""Statistics of features: equal for any order and any size of the batches."""

import numpy as np
import pytest
import torch
from random_features import features, statistics

from utils.base.errors import UserError
from utils.evaluation.feature_statistics import FeatureStats, Sample


def test_streaming_statistics_equal_those_of_all_features_at_once():
    values = features(101, 12, seed=0) + 1e4  # far from zero, where sums of squares cancel
    stats = FeatureStats()
    for batch in np.array_split(values, 7):
        stats.update(batch)
    mu, sigma = statistics(values)
    assert stats.n == 101
    np.testing.assert_allclose(stats.mu, mu, rtol=1e-12)
    np.testing.assert_allclose(stats.sigma, sigma, rtol=1e-9, atol=1e-9)


def test_statistics_do_not_depend_on_the_order_and_the_size_of_batches():
    values = features(50, 8, seed=1)
    whole = FeatureStats()
    whole.update(values)
    shared = FeatureStats()
    for rank in range(3):
        for batch in np.array_split(values[rank::3], 2):
            shared.update(torch.from_numpy(batch))
    shared.update(values[:0])  # a batch without images
    np.testing.assert_allclose(shared.mu, whole.mu, rtol=1e-12)
    np.testing.assert_allclose(shared.sigma, whole.sigma, rtol=1e-12, atol=1e-14)


def test_features_that_are_not_finite_are_refused():
    with pytest.raises(UserError, match="NaN"):
        FeatureStats().update(np.array([[0.0, np.nan]]))


def test_a_single_image_has_no_covariance():
    stats = FeatureStats()
    stats.update(features(1, 4, seed=0))
    with pytest.raises(UserError, match="at least two images"):
        _ = stats.sigma


def test_a_sample_holds_the_same_images_whatever_the_order_and_the_batches():
    rows = np.arange(300, dtype=np.float32)[:, None] * [1, 2]
    one = Sample(limit=40)
    one.update(np.arange(300), rows)
    other = Sample(limit=40)
    for batch in np.array_split(np.random.default_rng(0).permutation(300), 50):
        other.update(batch, rows[batch])
    assert len(one) == 40
    np.testing.assert_array_equal(other.indices, one.indices)
    np.testing.assert_array_equal(one.rows, rows[one.indices])
    np.testing.assert_array_equal(other.rows, one.rows)


def test_a_sample_of_few_images_holds_all_of_them_in_order():
    sample = Sample(limit=40)
    sample.update(np.array([7, 3, 5]), np.array([[7.0], [3.0], [5.0]]))
    np.testing.assert_array_equal(sample.rows[:, 0], [3, 5, 7])


def test_which_images_a_sample_holds_does_not_follow_their_order():
    sample = Sample(limit=1000)
    sample.update(np.arange(10_000), np.zeros((10_000, 1)))
    counts = np.histogram(sample.indices, bins=10, range=(0, 10_000))[0]
    assert counts.min() > 60 and counts.max() < 140  # 100 are expected, the deviation is 9.5
