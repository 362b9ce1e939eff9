"""Reading in threads while the results before are being used."""

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
    """`map(read, items)` with up to `ahead` results being read by threads meanwhile.

    `ahead`: 0 = one more than there are threads, of which there is at least one. Errors of `read`
    appear where its result would have.
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
