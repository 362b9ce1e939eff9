"""The part that this process plays among the processes of a job."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import NamedTuple, TypeVar

# A launcher (torchrun, accelerate launch, docs/slurm_train.sh) sets these in each process.
VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
ADDRESS = ("MASTER_ADDR", "MASTER_PORT")
# mpirun and Slurm's MPI set these instead; accelerate reads them.
MPI_SIZES = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
T = TypeVar("T")


class Launch(NamedTuple):
    """Ranks and numbers of the processes of a job: in all, and on this machine."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1


def launch() -> Launch:
    """Return what the environment says about the processes of this job.

    Raises ValueError, which names the variables, if they are incomplete or contradict each other,
    as when a cluster or an outer job left some of them behind.
    """
    rank, count, local_rank, local_count = (_number(name) for name in VARIABLES)
    found = Launch(rank or 0, 1 if count is None else count, local_rank or 0, local_count or 1)
    listed = " ".join(f"{n}={os.environ[n]}" for n in VARIABLES if _number(n) is not None)
    if count is None and found != Launch():
        raise ValueError(f"{listed} without WORLD_SIZE")
    if found.size > 1 and (rank is None or local_rank is None):
        raise ValueError(f"{listed} without {'RANK' if rank is None else 'LOCAL_RANK'}")
    most_local = found.size if local_count is None else local_count
    if (
        not found.local_rank <= found.rank < found.size
        or not found.local_rank < most_local <= found.size
        or local_count == 0
    ):
        raise ValueError(f"{listed} contradict each other")
    return found


def _number(name: str) -> int | None:
    """Return the whole number that a variable holds, None if it is not set; ValueError for others.

    Empty means not set, and so does a rank of -1.
    """
    text = os.environ.get(name, "").strip()
    if not text or (text == "-1" and name.endswith("RANK")):
        return None
    if not (text.isascii() and text.isdigit()):
        raise ValueError(f"{name}={text} is no number of a process")
    return int(text)


def launch_fault(several: bool) -> str | None:
    """Return why a script cannot go by the environment of its launch, or None.

    several: a launcher may start several processes of the script. Variables that speak of one
    process, but not of its group, are removed: libraries read them too.
    """
    try:
        found = launch()
        if several and found.size == 1:
            _refuse_mpi()
    except ValueError as fault:
        return f"{fault}: start it with torchrun (docs/cluster.md), or as one process: {_unset()}"
    if found.size > 1 and not several:
        return f"WORLD_SIZE={found.size}: this script runs as one process: {_unset()}"
    if found.size == 1 and not all(os.environ.get(n) for n in (*VARIABLES[:3], *ADDRESS)):
        for name in VARIABLES:
            os.environ.pop(name, None)
    return None


def _refuse_mpi() -> None:
    """Raise ValueError if mpirun has started several processes, which then know no group."""
    for name in MPI_SIZES:
        if (_number(name) or 1) > 1:
            raise ValueError(f"{name}={os.environ[name]} without WORLD_SIZE")


def _unset() -> str:
    """Return the command that removes all variables of a launch."""
    return f"unset {' '.join(n for n in (*VARIABLES, *MPI_SIZES) if n in os.environ)}"


def is_main_process() -> bool:
    """Return True if this process is the one that prints and writes."""
    try:
        return launch().rank == 0
    except ValueError:  # nobody's rank; scripts refuse it, and a notebook is alone
        return True


def main_process_only(compute: Callable[[], T]) -> T:
    """Return to all processes what `compute` returns in the main process; all call this."""
    from accelerate.utils import broadcast_object_list  # not above, as in `leave_processes`

    result: T = broadcast_object_list([compute() if is_main_process() else None])[0]
    return result


def leave_processes() -> None:
    """Leave the group of processes if this one has joined it; a script calls this at its end.

    The group's threads then end before the interpreter does. A thread that outlives it aborts the
    process, although all work is done.
    """
    import torch.distributed  # not above: scripts that join nothing start without it

    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
