"""The Fréchet distance: its value, its interval, its limit of many images."""

import numpy as np
import pytest
import scipy.linalg
from random_features import features, statistics

from utils.evaluation.frechet import (
    bootstrap_interval,
    frechet_distance,
    frechet_infinity,
    influences,
)


def by_sqrtm(mu1, sigma1, mu2, sigma2) -> float:
    """The textbook formula, on a matrix that is not symmetric."""
    root = scipy.linalg.sqrtm(sigma1 @ sigma2).real
    return np.sum((mu1 - mu2) ** 2) + np.trace(sigma1 + sigma2 - 2 * root)


@pytest.mark.parametrize(("dim", "n"), [(4, 500), (64, 200), (200, 2000)])
def test_frechet_distance_equals_the_matrix_square_root(dim, n):
    args = *statistics(features(n, dim, seed=2)), *statistics(features(n + 7, dim, seed=3))
    assert frechet_distance(*args) == pytest.approx(by_sqrtm(*args), rel=1e-6)


def test_frechet_distance_of_known_gaussians():
    diagonal = np.array([1.0, 4.0]), np.array([9.0, 16.0])  # (1 - 3)^2 + (2 - 4)^2 and a shift of 5
    mus = np.array([0.0, 0.0]), np.array([3.0, 4.0])
    value = frechet_distance(mus[0], np.diag(diagonal[0]), mus[1], np.diag(diagonal[1]))
    assert value == pytest.approx(25 + 4 + 4)


@pytest.mark.parametrize("swap", [False, True])
def test_frechet_distance_is_sane_when_covariances_lack_rank(swap):
    few, many = features(20, 64, seed=4), features(500, 64, seed=5)
    pair = (statistics(few), statistics(many))
    first, second = pair[::-1] if swap else pair
    # Adding a tiny multiple of the identity makes the square root well defined.
    nudged = [(mu, sigma + 1e-9 * np.eye(64)) for mu, sigma in (first, second)]
    expected = by_sqrtm(*nudged[0], *nudged[1])
    assert frechet_distance(*first, *second) == pytest.approx(expected, rel=1e-3)
    assert frechet_distance(*first, *second) == pytest.approx(frechet_distance(*second, *first))


@pytest.mark.parametrize("n", [20, 500])
def test_frechet_distance_to_itself_is_zero(n):
    mu, sigma = statistics(features(n, 64, seed=6))
    assert frechet_distance(mu, sigma, mu, sigma) == pytest.approx(0, abs=1e-9 * np.trace(sigma))


def test_images_without_any_spread_have_a_distance():
    mu, sigma = statistics(features(500, 8, seed=7))
    expected = np.square(mu - 1).sum() + np.trace(sigma)
    assert frechet_distance(np.ones(8), np.zeros((8, 8)), mu, sigma) == pytest.approx(expected)


@pytest.mark.parametrize("n", [20, 60])  # fewer and more than dimensions
def test_influences_say_how_the_distance_changes_with_the_weight_of_an_image(n):
    values, (mu2, sigma2) = features(n, 32, seed=8), statistics(features(300, 32, seed=9))

    def distance(weights: np.ndarray) -> float:
        mu = weights @ values
        centred = values - mu
        return frechet_distance(mu, centred.T @ (weights[:, None] * centred), mu2, sigma2)

    even, step = np.full(n, 1 / n), 1e-5
    mu1 = even @ values
    sigma1 = (values - mu1).T @ (values - mu1) / n
    expected = []
    for i in range(4):
        towards = np.eye(n)[i] - even
        change = distance(even + step * towards) - distance(even - step * towards)
        expected.append(change / (2 * step))
    found = influences(values, mu1, sigma1, mu2, sigma2)
    np.testing.assert_allclose(found[:4], expected, rtol=1e-3, atol=1e-4)


def test_the_interval_is_as_wide_as_distances_of_new_image_sets_vary():
    mu2, sigma2 = statistics(features(4000, 16, seed=10))
    everything = features(60_000, 16, seed=11)
    sets = everything.reshape(100, 600, 16)
    distances = [frechet_distance(*statistics(values), mu2, sigma2) for values in sets]
    influence = influences(sets[0], *statistics(sets[0]), mu2, sigma2)
    low, high = bootstrap_interval(influence, 600)
    assert low < 0 < high
    assert (high - low) / 3.92 == pytest.approx(np.std(distances), rel=0.25)


def test_the_extrapolation_removes_most_of_the_bias_of_few_images():
    mu2, sigma2 = statistics(features(4000, 64, seed=12))
    everything = features(100_000, 64, seed=13)
    truth = frechet_distance(*statistics(everything), mu2, sigma2)
    sets = [everything[i * 400 : (i + 1) * 400] for i in range(40)]
    found = np.mean([frechet_infinity(values, mu2, sigma2) for values in sets])
    biased = np.mean([frechet_distance(*statistics(values), mu2, sigma2) for values in sets])
    assert abs(found - truth) < 0.3 * abs(biased - truth)


def test_there_is_no_extrapolation_from_too_few_images():
    mu2, sigma2 = statistics(features(400, 64, seed=14))
    assert frechet_infinity(features(255, 64, seed=15), mu2, sigma2) is None
