"""Batches that do not fit into memory are done in halves.

accelerate's `find_executable_batch_size` begins all of the work anew; here only the batch in hand
is done again, so what is finished stays.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

from utils.base.errors import UserError, note, one_line

R = TypeVar("R")

# What libraries below torch say on a CPU, beside what accelerate knows.
CPU_MESSAGES = ("std::bad_alloc", "could not create a memory", "can't allocate memory")


def is_out_of_memory(fault: BaseException) -> bool:
    """Whether an exception says that the memory of a device or of the machine did not suffice."""
    if isinstance(fault, MemoryError):
        return True
    known = isinstance(fault, RuntimeError) and any(text in str(fault) for text in CPU_MESSAGES)
    return known or should_reduce_batch_size(fault)


class Halving:
    """Does work on batches, on ever smaller parts of them where memory runs out.

    Remembers what fits, so that later batches are cut at once.
    """

    def __init__(self, what: str) -> None:
        """`what` is done, for messages, e.g. 'sampling'."""
        self.what = what
        self.most: int | None = None  # that fit; None = no limit is known

    def __call__(self, work: Callable[[int, int], R], count: int) -> list[R]:
        """The results of `work(first, stop)` over parts that cover 0 to `count`, in order.

        Raises a UserError if memory does not suffice for one.
        """
        results: list[R] = []
        first = 0
        while first < count:
            stop = min(first + (self.most or count), count)
            try:
                results.append(work(first, stop))
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
