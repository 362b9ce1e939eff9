"""Threads of the libraries below torch: as many as this process may use, and no long spinning.

GNU OpenMP's threads spin while they wait for one another. Beside other programs the one that they
wait for often does not run, and they burn the time that it needs: an evaluation then takes three
times its processor time (docs/performance.md). Its count of threads follows the processors
of the machine, not the quota of a container. Both are read when torch is loaded, so that
utils.base.script sets them before.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Mapping
from pathlib import Path

SPINS = "GOMP_SPINCOUNT"  # rounds that a thread waits actively before it sleeps
COUNT = "OMP_NUM_THREADS"
FEW_SPINS = "10000"  # GNU OpenMP's own choice is 300,000
_added: dict[str, str] = {}  # variables that this process has set


def processors(root: Path = Path("/")) -> int:
    """Count the processors that this process may use: by affinity, and by the container's quota."""
    return min([_affinity(), *(max(1, math.ceil(quota)) for quota in _quotas(root))])


def thread_settings(environment: Mapping[str, str], root: Path = Path("/")) -> dict[str, str]:
    """Return the variables of OpenMP to add to an environment; what the user has set stays."""
    settings = {}
    if not {SPINS, "OMP_WAIT_POLICY"} & environment.keys():
        settings[SPINS] = FEW_SPINS
    if COUNT not in environment and (count := processors(root)) < _affinity():
        settings[COUNT] = str(count)
    return settings


def prepare_threads() -> None:
    """Set the threads of this process and of those that it starts, before torch is loaded."""
    _added.update(thread_settings(os.environ))
    os.environ.update(_added)


def environment_of_user() -> dict[str, str]:
    """Return the environment without the variables that `prepare_threads` has set."""
    return {name: value for name, value in os.environ.items() if name not in _added}


def _affinity() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _quotas(root: Path) -> list[float]:
    """Return the processors that the control groups of this process allow, cgroup v1 and v2.

    root: folder that holds /proc and /sys.
    """
    if sys.platform != "linux":
        return []
    quotas = []
    for group in _lines(root / "proc/self/cgroup"):  # e.g. 0::/a/b or 4:cpu,cpuacct:/a/b
        _, controllers, path = group.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        mount = root / "sys/fs/cgroup" / ("cpu" if controllers else "")
        # Inside a container the mount is the group itself, and the path may lie outside of it.
        inner = Path(os.path.normpath(path)).relative_to("/")
        for folder in (inner, *inner.parents):
            if controllers:
                names = ("cpu.cfs_quota_us", "cpu.cfs_period_us")
                numbers = [word for name in names for word in _lines(mount / folder / name)]
            else:
                numbers = " ".join(_lines(mount / folder / "cpu.max")).split()  # e.g. 200000 100000
            if len(numbers) == 2 and all(number.isdecimal() for number in numbers):
                quotas.append(int(numbers[0]) / max(int(numbers[1]), 1))
    return quotas


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
