"""Read in threads while earlier results are being used."""

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def read_ahead(
    read: Callable[[T], R], items: Iterable[T], threads: int = 1, ahead: int = 0
) -> Iterator[R]:
    """Yield `read(item)` for each item in order, while threads read up to `ahead` results more.

    `threads`: at least one is started. `ahead`: 0 = `threads` + 1. An error of `read` is raised in
    the place of its result.
    """
    threads, upcoming = max(threads, 1), iter(items)
    pool = ThreadPoolExecutor(threads, thread_name_prefix="read-ahead")
    first = itertools.islice(upcoming, ahead or threads + 1)
    waiting = deque(pool.submit(read, item) for item in first)
    try:
        while waiting:
            result = waiting.popleft().result()
            waiting.extend(pool.submit(read, item) for item in itertools.islice(upcoming, 1))
            yield result
    finally:
        pool.shutdown(cancel_futures=True)
