"""A process that has left its group has none of the group's threads."""

import multiprocessing
import queue
from pathlib import Path

import psutil
import torch.distributed

from utils.base.processes import leave_processes


def count_threads(rank: int, store: Path, counts: queue.Queue[tuple[int, int, int]]) -> None:
    """Join two processes, agree once, leave; send how many threads there were each time."""

    def threads() -> int:
        return psutil.Process().num_threads()

    before = threads()
    torch.distributed.init_process_group(
        "gloo", init_method=store.as_uri(), rank=rank, world_size=2
    )
    torch.distributed.broadcast_object_list([rank])
    joined = threads()
    leave_processes()
    counts.put((before, joined, threads()))


def test_leaving_ends_the_groups_threads(tmp_path):
    context = multiprocessing.get_context("spawn")
    counts = context.Queue()
    arguments = (tmp_path / "store", counts)
    workers = [context.Process(target=count_threads, args=(r, *arguments)) for r in range(2)]
    for worker in workers:
        worker.start()
    for before, joined, left in (counts.get(timeout=120) for _ in workers):
        assert joined > before == left
    for worker in workers:
        worker.join(timeout=60)
        assert worker.exitcode == 0


def test_a_process_alone_leaves_nothing():
    leave_processes()
    assert not torch.distributed.is_initialized()
