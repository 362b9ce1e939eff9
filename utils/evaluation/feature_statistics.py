"""Statistics of an image set's features, in memory that does not grow with the number of images.

The second of three steps. All statistics depend on the images and their indices alone; the order
and the size of the batches change only the rounding.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from utils.base.errors import UserError

SAMPLE_LIMIT = 10_000  # rows kept for metrics that need the features themselves
SPLITS = 10  # of the Inception score


class FeatureStats:
    """Streaming mean and covariance in float64.

    Updates follow Chan, Golub & LeVeque 1983 (equation 2.1). Sums of squares would cancel when the
    mean is far from zero.
    """

    def __init__(self) -> None:
        self.n = 0
        self.mu = np.zeros(0)  # (D,)
        self.scatter = np.zeros((0, 0))  # (D, D), sum of outer products about the mean

    def update(self, features: Tensor | np.ndarray) -> None:
        """Add a batch of (B, D) features; raise UserError if a value is not finite."""
        features = np.asarray(features, dtype=np.float64)
        if not np.isfinite(features).all():
            raise UserError("the feature network gave NaN or infinite features for an image")
        n = len(features)
        if n == 0:
            return
        mu = features.mean(axis=0)
        if self.n == 0:
            self.mu, self.scatter = np.zeros_like(mu), np.zeros((len(mu), len(mu)))
        shift = (mu - self.mu) * np.sqrt(self.n * n / (self.n + n))
        rows = np.concatenate([features - mu, shift[None]])
        self.scatter += rows.T @ rows
        self.mu = self.mu + (mu - self.mu) * (n / (self.n + n))
        self.n += n

    @property
    def sigma(self) -> np.ndarray:
        """(D, D) unbiased covariance; raises UserError with fewer than two images."""
        if self.n < 2:
            raise UserError(f"a covariance needs at least two images, got {self.n}")
        return self.scatter / (self.n - 1)


class ClassStats:
    """Sums for the Inception score; image i belongs to split i modulo SPLITS."""

    def __init__(self) -> None:
        self.n = np.zeros(SPLITS)
        self.probabilities = np.zeros((SPLITS, 0))  # sums of p(class | image)
        self.negentropies = np.zeros(SPLITS)  # sums of sum_c p log p

    def update(self, indices: np.ndarray, logits: Tensor) -> None:
        """Add (B, C) class logits of the images at these indices."""
        logits = logits.double()
        if not self.probabilities.shape[1]:
            self.probabilities = np.zeros((SPLITS, logits.shape[1]))
        log_p = logits.log_softmax(dim=1)
        p = log_p.exp()
        split = indices % SPLITS
        np.add.at(self.n, split, 1)
        np.add.at(self.probabilities, split, p.numpy())
        np.add.at(self.negentropies, split, (p * log_p).sum(dim=1).numpy())


class Sample:
    """Rows of at most `limit` images: those with the lowest hash of the index.

    The choice depends on the indices alone.
    """

    def __init__(self, limit: int = SAMPLE_LIMIT) -> None:
        self.limit = limit
        self._indices, self._rows = np.zeros(0, np.int64), np.zeros((0, 0), np.float32)
        self._bar = np.uint64(2**64 - 1)  # an index with a higher hash is not in the sample
        self._new: list[tuple[np.ndarray, np.ndarray]] = []

    def update(self, indices: np.ndarray, rows: Tensor | np.ndarray) -> None:
        """Offer the (B, D) rows of the images at these indices."""
        rows = np.asarray(rows, dtype=np.float32)
        kept = _hashes(indices) <= self._bar
        if kept.any():
            self._new.append((indices[kept], rows[kept]))
        if sum(len(part) for part, _ in self._new) > self.limit // 4:
            self._settle()

    def __len__(self) -> int:
        """Return the number of images in the sample."""
        return len(self.indices)

    @property
    def indices(self) -> np.ndarray:
        """(n,) int64, ascending."""
        self._settle()
        return self._indices

    @property
    def rows(self) -> np.ndarray:
        """(n, D) float32, in order of the indices."""
        self._settle()
        return self._rows

    def _settle(self) -> None:
        """Merge the new rows into the sample, and drop those above the limit."""
        if not self._new:
            return
        parts = [(self._indices, self._rows)] if len(self._indices) else []
        indices, rows = (np.concatenate(x) for x in zip(*parts, *self._new, strict=True))
        order = np.argsort(_hashes(indices))[: self.limit]
        if len(order) == self.limit:
            self._bar = _hashes(indices[order[-1:]])[0]
        order = order[np.argsort(indices[order])]
        self._indices, self._rows, self._new = indices[order], rows[order], []


def _hashes(indices: np.ndarray) -> np.ndarray:
    """Return a well mixed 64-bit number for each index (splitmix64; Steele 2014, figure 17)."""
    x = indices.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
