"""Run a batch in smaller ones if it does not fit into memory.

accelerate's `find_executable_batch_size` begins all of the work anew; here finished batches stay.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, Self, TypeVar

from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

from utils.base.errors import UserError, note, one_line

# Messages of the libraries below torch on a CPU, beside those that accelerate knows.
CPU_MESSAGES = ("std::bad_alloc", "could not create a memory", "can't allocate memory")


class Sliceable(Protocol):
    """A batch: a tensor, a list or a range."""

    def __len__(self) -> int: ...
    def __getitem__(self, part: slice, /) -> Self: ...


Batch = TypeVar("Batch", bound=Sliceable)
R = TypeVar("R")


def is_out_of_memory(fault: BaseException) -> bool:
    """Return True if an exception reports that the device or the machine ran out of memory."""
    if isinstance(fault, MemoryError):
        return True
    known = isinstance(fault, RuntimeError) and any(text in str(fault) for text in CPU_MESSAGES)
    return known or should_reduce_batch_size(fault)


class OomBatchSplitter:
    """Runs work on batches, in smaller ones once memory has run out; it remembers what fits."""

    def __init__(self, what: str) -> None:
        """`what`: name of the task in messages, for example 'sampling'."""
        self.what = what
        self.most: int | None = None  # largest size that fits; None = no limit is known

    def __call__(self, work: Callable[[Batch], R], batch: Batch) -> list[R]:
        """Return the results of `work(part)` for parts that cover `batch`, in order.

        Raises UserError if memory does not suffice for a part of one item.
        """
        results: list[R] = []
        first = 0
        while first < len(batch):
            stop = min(first + (self.most or len(batch)), len(batch))
            try:
                results.append(work(batch[first:stop]))
                first = stop
                continue
            except (RuntimeError, MemoryError) as fault:
                if not is_out_of_memory(fault):
                    raise
                reason = one_line(fault)
            # Here, the exception no longer keeps the tensors of the failed part alive.
            if stop - first == 1:
                raise UserError(f"{self.what}: not enough memory even for a batch of 1 ({reason})")
            clear_device_cache(garbage_collection=True)
            self.most = (stop - first) // 2
            note(f"{self.what}: {stop - first} at once do not fit into memory; now {self.most}")
        return results
