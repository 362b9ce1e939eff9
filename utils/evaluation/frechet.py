"""The Fréchet distance between two sets of features: its value, its error, its limit.

Statistics are float64: `mu` (D,) and the unbiased covariance `sigma` (D, D).
"""

from __future__ import annotations

import numpy as np
from scipy.linalg import solve_triangular

RESAMPLES = 1000
CONFIDENCE = 0.95
INFINITY_POINTS = 15
INFINITY_MINIMUM = 4  # images for each dimension; with fewer the bias is no longer linear in 1/N


def frechet_distance(
    mu1: np.ndarray, sigma1: np.ndarray, mu2: np.ndarray, sigma2: np.ndarray
) -> float:
    """Squared Fréchet distance of two Gaussians (Heusel 2017, equation 6).

    tr sqrt(S1 S2) is the sum of the root eigenvalues of R^T S2 R with S1 = R R^T, a symmetric
    matrix, so nothing is ever complex. R has only as many columns as S1 has rank, and it is taken
    from the matrix of lower rank: null directions then add no rounding noise.
    """
    root, other = _root(sigma1), sigma2
    if root.shape[1] == len(root):
        root2 = _root(sigma2)
        if root2.shape[1] < len(root2):
            root, other = root2, sigma1
    product = np.linalg.eigvalsh(root.T @ other @ root)
    mixed = np.sqrt(product.clip(min=0)).sum()
    distance = np.square(mu1 - mu2).sum() + np.trace(sigma1) + np.trace(sigma2) - 2 * mixed
    return max(float(distance), 0.0)


def _root(sigma: np.ndarray) -> np.ndarray:
    """(D, D) covariance of rank r -> (D, r) with R R^T = sigma."""
    try:
        return np.linalg.cholesky(sigma)  # an eighth of the time of the general way
    except np.linalg.LinAlgError:
        values, vectors = np.linalg.eigh(sigma)
        kept = values > values[-1] * len(values) * np.finfo(np.float64).eps
        return vectors[:, kept] * np.sqrt(values[kept])


def influences(
    features: np.ndarray, mu1: np.ndarray, sigma1: np.ndarray, mu2: np.ndarray, sigma2: np.ndarray
) -> np.ndarray:
    """How much more of each image would change the distance: (N, D) features -> (N,).

    The first derivative of the distance in the distribution of the images, whose statistics are
    `mu1`, `sigma1`. With S1 = R R^T, M = R^T S2 R and x - mu1 = R c it is
    2 (mu1 - mu2) (x - mu1) + |x - mu1|^2 - tr S1 - c^T sqrt(M) c + tr sqrt(M).
    """
    root, centred = _root(sigma1), features - mu1
    if root.shape[1] == len(root):
        c = solve_triangular(root, centred.T, lower=True)
    else:
        c = (root / np.square(root).sum(axis=0)).T @ centred.T  # columns are orthogonal
    values, vectors = np.linalg.eigh(root.T @ sigma2 @ root)
    weights = np.sqrt(values.clip(min=0))
    mixed = weights @ np.square(vectors.T @ c)
    linear = 2 * centred @ (mu1 - mu2)
    spread = np.square(centred).sum(axis=1) - np.trace(sigma1)
    return linear + spread - mixed + weights.sum()


def bootstrap_interval(
    influence: np.ndarray, n: int, seed: int = 0, resamples: int = RESAMPLES
) -> tuple[float, float]:
    """Between which deviations the distance lies in 95 % of all draws of `n` images: (low, high).

    `influence`: of a sample of the images. Images are resampled (Efron 1979) and the distance is
    followed to first order, since the distance of a resample has the bias of fewer images. The
    reference counts as given.
    """
    generator = np.random.default_rng(seed)
    centred = influence - influence.mean()
    means = [centred[generator.integers(len(centred), size=n)].mean() for _ in range(resamples)]
    low, high = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def frechet_infinity(
    features: np.ndarray, mu: np.ndarray, sigma: np.ndarray, seed: int = 0
) -> float | None:
    """The distance that infinitely many images would have, by extrapolation (Chong & Forsyth 2020).

    The distance of N images is biased by a term in 1/N: a line through the distances of random
    subsets of the (N, D) features, from half of them to all, is followed to 1/N = 0. None if N is
    below 4 D, where that term does not rule.
    """
    if len(features) < INFINITY_MINIMUM * len(mu):
        return None
    generator = np.random.default_rng(seed)
    sizes = np.linspace(len(features) / 2, len(features), INFINITY_POINTS).astype(int)
    distances = []
    for size in sizes:
        part = features[generator.permutation(len(features))[:size]].astype(np.float64)
        centred = part - part.mean(axis=0)
        covariance = centred.T @ centred / (size - 1)
        distances.append(frechet_distance(part.mean(axis=0), covariance, mu, sigma))
    return float(np.polyfit(1 / sizes, distances, 1)[1])
