"""The Fréchet distance between two sets of features: value, error, limit for many images.

Statistics are float64: `mu` (D,) and the unbiased covariance `sigma` (D, D).
"""

from __future__ import annotations

import numpy as np

RESAMPLES = 1000
CONFIDENCE = 0.95
INFINITY_POINTS = 15
INFINITY_MINIMUM = 4  # images for each dimension; with fewer the bias is no longer linear in 1/N


def frechet_distance(
    mu1: np.ndarray, sigma1: np.ndarray, mu2: np.ndarray, sigma2: np.ndarray
) -> float:
    """Return the squared Fréchet distance of two Gaussians (Heusel 2017, equation 6).

    With S1 = R R^T, tr sqrt(S1 S2) is the sum of the square roots of the eigenvalues of R^T S2 R.
    That matrix is symmetric, so no value is complex. R has as many columns as its matrix has rank,
    and belongs to the matrix of lower rank, so that null directions add no rounding noise.
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
    """Return R (D, r) with R R^T = sigma, for a covariance (D, D) of rank r."""
    try:
        return np.asarray(np.linalg.cholesky(sigma))  # takes an eighth of the time of eigh
    except np.linalg.LinAlgError:
        values, vectors = np.linalg.eigh(sigma)
        kept = values > values[-1] * len(values) * np.finfo(np.float64).eps
        return np.asarray(vectors[:, kept] * np.sqrt(values[kept]))


def influences(
    features: np.ndarray, mu1: np.ndarray, sigma1: np.ndarray, mu2: np.ndarray, sigma2: np.ndarray
) -> np.ndarray:
    """Return the influence of each image on the distance: (N, D) features -> (N,).

    It is the first derivative of the distance by the image's weight in the distribution of the
    images, whose statistics are `mu1`, `sigma1`. With S1 = R R^T, M = R^T S2 R and x - mu1 = R c:
    2 (mu1 - mu2) (x - mu1) + |x - mu1|^2 - tr S1 - c^T sqrt(M) c + tr sqrt(M).
    """
    from scipy.linalg import solve_triangular  # slow to import, and trainings do not need it

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
    return np.asarray(linear + spread - mixed + weights.sum())


def bootstrap_interval(
    influence: np.ndarray, n: int, seed: int = 0, resamples: int = RESAMPLES
) -> tuple[float, float]:
    """Return the deviations (low, high) that hold 95 % of the distances of `n` resampled images.

    `influence`: of a sample of the images, (N,). Images are resampled (Efron 1979), and the
    distance is followed to first order: the distance of a resample itself would have the bias of
    fewer images. The reference counts as fixed.
    """
    generator = np.random.default_rng(seed)
    centred = influence - influence.mean()
    means = [centred[generator.integers(len(centred), size=n)].mean() for _ in range(resamples)]
    low, high = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def frechet_infinity(
    features: np.ndarray, mu: np.ndarray, sigma: np.ndarray, seed: int = 0
) -> float | None:
    """Extrapolate the distance to infinitely many images (Chong & Forsyth 2020).

    The bias of the distance is linear in 1/N for large N. A line is fitted to the distances of
    random subsets of the (N, D) features, from half of them to all, and read at 1/N = 0. None if N
    is below 4 D, where the bias is not linear.
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
