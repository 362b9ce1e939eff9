"""Random features of images, and their statistics, for tests of metrics."""

import numpy as np


def features(n: int, dim: int, seed: int) -> np.ndarray:
    """Return features (n, dim): correlated, not Gaussian, of very different scales."""
    generator = np.random.default_rng(seed)
    mixing = generator.normal(size=(dim, dim)) * np.exp(-np.arange(dim) / dim * 4)
    return np.maximum(generator.normal(size=(n, dim)) @ mixing.T, -0.3) + generator.normal()


def statistics(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean (D,) and covariance (D, D) of features (N, D), computed by numpy."""
    return values.mean(axis=0), np.cov(values, rowvar=False)
