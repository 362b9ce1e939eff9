"""Random numbers of a batch of several processes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class RankSlice:
    """Rows rank_offset … rank_offset + count of a global batch of `total`: those of one process."""

    rank_offset: int
    count: int
    total: int

    @classmethod
    def whole(cls, count: int) -> "RankSlice":
        """Return the slice of a process that has the whole batch of `count` rows."""
        return cls(0, count, count)

    def random(self, generator: torch.Generator) -> "BatchRandom":
        """Return random numbers of the global batch that give this slice."""
        return BatchRandom(generator, self.rank_offset, self.total)


@dataclass(frozen=True)
class BatchRandom:
    """Makes numbers for every row of a global batch and slices them to a process.

    All processes hold generators of the same state and get the same numbers. The rows of an image
    are therefore the same for any number of processes.

    generator: None = the device's default generator. Its device must be that of the numbers.
    rank_offset: the global batch's row with which the rows of this process begin.
    total: rows of the global batch; None = this process has the whole batch.
    """

    generator: torch.Generator | None = None
    rank_offset: int = 0
    total: int | None = None

    def own(self, count: int, make: Callable[[int], Tensor]) -> Tensor:
        """Return the `count` rows of this process from `make(total)`, which has all rows."""
        return make(self.total or count)[self.rank_offset : self.rank_offset + count]

    def randn(
        self,
        shape: Sequence[int],
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """Return unit normal numbers; `shape`: (rows of this process, …)."""
        return self._numbers(torch.randn, shape, device, dtype)

    def rand(
        self,
        shape: Sequence[int],
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """Return numbers of U(0, 1); `shape`: (rows of this process, …)."""
        return self._numbers(torch.rand, shape, device, dtype)

    def _numbers(
        self,
        function: Callable[..., Tensor],
        shape: Sequence[int],
        device: torch.device | str,
        dtype: torch.dtype,
    ) -> Tensor:
        count, *rest = shape
        options = {"generator": self.generator, "device": device, "dtype": dtype}
        return self.own(count, lambda total: function(total, *rest, **options))


WHOLE_BATCH = BatchRandom()  # from the default generator, for a process that has all rows
