"""What is kept of an image set's features, in memory that does not grow with the number of images.

The second of three steps. All of it is a function of the images and their indices alone, and can be
merged: how images were shared among batches and processes makes no difference (to rounding).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from utils.base.errors import UserError

SAMPLE_LIMIT = 10_000  # rows kept for metrics that need the features themselves
SPLITS = 10  # of the Inception score
State = dict[str, Tensor]


class FeatureStats:
    """Streaming mean and covariance in float64.

    Updates and merges are those of Chan, Golub & LeVeque 1983 (equation 2.1), which do not cancel
    as sums of squares do.
    """

    def __init__(self) -> None:
        self.n = 0
        self.mu = np.zeros(0)  # (D,)
        self.scatter = np.zeros((0, 0))  # (D, D), sum of outer products about the mean

    def update(self, features: Tensor | np.ndarray) -> None:
        """Add a batch of (B, D) features; raises UserError if one is not finite."""
        features = np.asarray(features, dtype=np.float64)
        if not np.isfinite(features).all():
            raise UserError("the feature network gave NaN or infinite features for an image")
        if len(features):
            mu = features.mean(axis=0)
            self._add(len(features), mu, features - mu)

    def merge(self, other: FeatureStats) -> None:
        """Add what another one (of another process) has gathered."""
        if other.n:
            self._add(other.n, other.mu, np.zeros((0, len(other.mu))))
            self.scatter += other.scatter

    def _add(self, n: int, mu: np.ndarray, centred: np.ndarray) -> None:
        """Add `n` images of mean `mu` whose own scatter is that of the rows `centred`."""
        if self.n == 0:
            self.mu, self.scatter = np.zeros_like(mu), np.zeros((len(mu), len(mu)))
        shift = (mu - self.mu) * np.sqrt(self.n * n / (self.n + n))
        rows = np.concatenate([centred, shift[None]])
        self.scatter += rows.T @ rows
        self.mu = self.mu + (mu - self.mu) * (n / (self.n + n))
        self.n += n

    @property
    def sigma(self) -> np.ndarray:
        """(D, D) unbiased covariance; raises UserError with fewer than two images."""
        if self.n < 2:
            raise UserError(f"a covariance needs at least two images, got {self.n}")
        return self.scatter / (self.n - 1)

    def state_dict(self) -> State:
        arrays = {"n": np.int64(self.n), "mu": self.mu, "scatter": self.scatter}
        return {key: torch.from_numpy(np.array(value)) for key, value in arrays.items()}

    def load_state_dict(self, state: State) -> None:
        self.n = int(state["n"])
        self.mu, self.scatter = (state[key].numpy().copy() for key in ("mu", "scatter"))


class ClassStats:
    """Sums that the Inception score needs; image i belongs to split i modulo SPLITS."""

    def __init__(self) -> None:
        self.n = np.zeros(SPLITS)
        self.probabilities = np.zeros((SPLITS, 0))  # sums of p(class | image)
        self.negentropies = np.zeros(SPLITS)  # sums of sum_c p log p

    def update(self, indices: np.ndarray, logits: Tensor) -> None:
        """Add (B, C) class logits of the images at these indices."""
        logits = logits.double()
        log_p = logits.log_softmax(dim=1)
        p = log_p.exp()
        batch = ClassStats()
        batch.probabilities = np.zeros((SPLITS, logits.shape[1]))
        split = indices % SPLITS
        np.add.at(batch.n, split, 1)
        np.add.at(batch.probabilities, split, p.numpy())
        np.add.at(batch.negentropies, split, (p * log_p).sum(dim=1).numpy())
        self.merge(batch)

    def merge(self, other: ClassStats) -> None:
        if other.n.sum():
            self.n = self.n + other.n
            mine = self.probabilities if self.probabilities.shape[1] else 0
            self.probabilities = mine + other.probabilities
            self.negentropies = self.negentropies + other.negentropies

    def state_dict(self) -> State:
        return {key: torch.from_numpy(value.copy()) for key, value in vars(self).items()}

    def load_state_dict(self, state: State) -> None:
        for key in vars(self):
            setattr(self, key, state[key].numpy().copy())


class Sample:
    """Rows of at most `limit` images: those whose index has the lowest hash.

    Which ones these are depends on nothing but the indices, and two samples merge exactly.
    """

    def __init__(self, limit: int = SAMPLE_LIMIT) -> None:
        self.limit = limit
        self._indices, self._rows = np.zeros(0, np.int64), np.zeros((0, 0), np.float32)
        self._bar = np.uint64(2**64 - 1)  # indices with a higher hash are out
        self._new: list[tuple[np.ndarray, np.ndarray]] = []

    def update(self, indices: np.ndarray, rows: Tensor | np.ndarray) -> None:
        """Offer the (B, D) rows of the images at these indices."""
        rows = np.asarray(rows, dtype=np.float32)
        kept = _hashes(indices) <= self._bar
        if kept.any():
            self._new.append((indices[kept], rows[kept]))
        if sum(len(part) for part, _ in self._new) > self.limit // 4:
            self._settle()

    def merge(self, other: Sample) -> None:
        if len(other):
            self.update(other.indices, other.rows)

    def __len__(self) -> int:
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
        if not self._new:
            return
        parts = [(self._indices, self._rows)] if len(self._indices) else []
        indices, rows = (np.concatenate(x) for x in zip(*parts, *self._new, strict=True))
        order = np.argsort(_hashes(indices))[: self.limit]
        if len(order) == self.limit:
            self._bar = _hashes(indices[order[-1:]])[0]
        order = order[np.argsort(indices[order])]
        self._indices, self._rows, self._new = indices[order], rows[order], []

    def state_dict(self) -> State:
        return {"indices": torch.from_numpy(self.indices), "rows": torch.from_numpy(self.rows)}

    def load_state_dict(self, state: State) -> None:
        self.__init__(self.limit)
        self.update(state["indices"].numpy(), state["rows"].numpy())


def _hashes(indices: np.ndarray) -> np.ndarray:
    """A well mixed 64-bit number for each index (splitmix64; Steele 2014, figure 17)."""
    x = indices.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
