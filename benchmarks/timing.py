"""Shared parts of the benchmarks: interleaved timing, peak memory, the machine's rate, a report.

A variant is a function without arguments that does the work once. `interleaved` times variants in
one process; `compare` gives each variant a process of its own, and so measures its memory.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import re
import shlex
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from utils.base.files import write_text

ROOT = Path(__file__).resolve().parents[1]
Work = Callable[[], Any]


@dataclass
class Timing:
    """Seconds of each repetition, their peak memory (bytes), and the result of the last one."""

    seconds: list[float] = field(default_factory=list)
    peak: int = 0
    result: Any = None

    @property
    def median(self) -> float:
        """Median of the repetitions, seconds."""
        return statistics.median(self.seconds)


def timed(work: Work) -> tuple[float, Any]:
    """Return the seconds that `work` takes, until the device is idle, and its result."""
    start = time.perf_counter()
    result = work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start, result


def interleaved(
    variants: Mapping[str, Work], repeats: int = 5, warmup: int = 1
) -> dict[str, Timing]:
    """Time variants in alternation, so that changes of the machine's speed meet all of them.

    Peaks are not measured.
    """
    timings = {name: Timing() for name in variants}
    for repeat in range(warmup + repeats):
        for name, work in variants.items():
            seconds, timings[name].result = timed(work)
            if repeat >= warmup:
                timings[name].seconds.append(seconds)
    return timings


def compare(
    setups: Mapping[str, Callable[[], Work]], repeats: int = 5, warmup: int = 1, *, rounds: int = 0
) -> dict[str, Timing]:
    """Time variants in alternation, each in its own process; return name -> Timing with its peak.

    Variants run one at a time, with as many threads as this process has.

    Args:
        setups: for each variant a picklable function that builds its work; the work's result must
            be picklable too.
        repeats: timed repetitions of each variant.
        warmup: repetitions before them, neither timed nor counted in the peak.
        rounds: 0 = all variants are in memory at once. With another number each variant is alone in
            memory, and is started anew in so many rounds of `repeats`.
    """
    timings = {name: Timing() for name in setups}
    if rounds:
        for _ in range(rounds):
            for name, setup in setups.items():
                _alternate({name: setup}, timings, repeats, warmup)
    else:
        _alternate(setups, timings, repeats, warmup)
    return timings


def _alternate(
    setups: Mapping[str, Callable[[], Work]], timings: dict[str, Timing], repeats: int, warmup: int
) -> None:
    """Start a process per variant, and add its repetitions to `timings`."""
    context = multiprocessing.get_context("spawn")
    workers = {}
    for name, setup in setups.items():
        ours, theirs = context.Pipe()
        arguments = (setup, theirs, torch.get_num_threads(), warmup)
        process = context.Process(target=_serve, args=arguments, daemon=False)
        workers[name] = (process, ours, theirs)
    try:
        for name, (process, connection, theirs) in workers.items():
            process.start()
            theirs.close()  # otherwise the end of the process would go unnoticed
            _answer(name, connection)  # comes when it is built and warmed up
        for _ in range(repeats):
            for name, (_, connection, _) in workers.items():
                connection.send(True)
                seconds, result, peak = _answer(name, connection)
                timing = timings[name]
                timing.seconds.append(seconds)
                timing.result, timing.peak = result, max(peak, timing.peak)
    finally:
        for process, connection, _ in workers.values():
            connection.close()
            if process.pid:
                process.join(timeout=30)


def _answer(name: str, connection: Connection) -> Any:
    """Wait for the next message of a variant; raise RuntimeError if its process has ended."""
    try:
        return connection.recv()
    except EOFError as error:
        raise RuntimeError(f"the process of variant '{name}' ended; its error is above") from error


def _serve(setup: Callable[[], Work], connection: Connection, threads: int, warmup: int) -> None:
    """Run in a variant's process: build, warm up, then do one repetition for each message."""
    torch.set_num_threads(threads)
    work = setup()
    for _ in range(warmup):
        timed(work)
    reset_peak()
    connection.send(None)
    try:
        while connection.recv():
            seconds, result = timed(work)
            connection.send((seconds, result, peak_memory()))
    except EOFError:
        pass


def reset_peak() -> None:
    """Set the peak memory back to the present memory."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")


def peak_memory() -> int:
    """Return the peak memory since `reset_peak`, bytes: on the GPU, or resident in this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    (kib,) = re.findall(r"VmHWM:\s*(\d+)", Path("/proc/self/status").read_text(encoding="utf-8"))
    return 1024 * int(kib)


def matmul_rate(dtype: torch.dtype, size: int = 2048, seconds: float = 1.0) -> float:
    """Return the FLOP/s of a large square matrix product: the median over `seconds`."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    timed(lambda: a @ b)
    taken: list[float] = []
    while sum(taken) < seconds:
        taken.append(timed(lambda: a @ b)[0])
    return 2 * size**3 / statistics.median(taken)


def machine() -> str:
    """Return one line that names the processor or GPU, the threads and the versions."""
    if torch.cuda.is_available():
        name = torch.cuda.get_device_name()
    else:
        found = re.search(
            r"model name\s*:\s*(.*)", Path("/proc/cpuinfo").read_text(encoding="utf-8")
        )
        name = f"{found[1] if found else platform.machine()}, {torch.get_num_threads()} threads"
    return f"{name}; PyTorch {torch.__version__}, Python {platform.python_version()}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of all benchmarks; `start` and `report` read them."""
    parser.add_argument("--threads", type=int, default=2, help="processor cores to use")
    parser.add_argument("--repeats", type=int, default=5, help="timed repetitions")
    parser.add_argument("--out", type=Path, help="JSON file to write; None = none")


def start(args: argparse.Namespace) -> None:
    """Restrict this process and its children to `--threads` cores.

    So children that count the cores take as many threads. The cores are those to which the fewest
    other processes are restricted: two benchmarks of one thread at once have a core each. Their
    figures still depend on each other, by caches and memory.
    """
    os.sched_setaffinity(0, free_cores(args.threads))
    torch.set_num_threads(args.threads)


def free_cores(count: int) -> list[int]:
    """Return cores of this process to which the fewest other processes are restricted."""
    own, restricted = os.sched_getaffinity(0), Counter[int]()
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended, or is another user's
            cores = os.sched_getaffinity(int(process.name))
            if cores < own and (process / "cmdline").read_bytes():  # the kernel's own have none
                restricted.update(cores)
    return sorted(own, key=lambda core: (restricted[core], core))[:count]


def table(rows: Iterable[Mapping[str, Any]]) -> str:
    """Return rows with equal keys as a Markdown table, floats with three digits."""
    rows = list(rows)
    lines = ["| " + " | ".join(rows[0]) + " |", "|" + "---|" * len(rows[0])]
    lines += ["| " + " | ".join(_shown(value) for value in row.values()) + " |" for row in rows]
    return "\n".join(lines)


def _shown(value: Any) -> str:
    """Return a cell's text."""
    if not isinstance(value, float):
        return str(value)
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def report(
    out: Path | None,
    title: str,
    rows: list[dict[str, Any]],
    notes: Iterable[str] = (),
    command: str | None = None,
    data: Mapping[str, Any] | None = None,
) -> None:
    """Print a table, and write it to the JSON file `out` that research/tables.py reads.

    Args:
        out: the file; None = print only.
        title: heading of the table.
        rows: plain values by column title; the title states the unit.
        notes: sentences below the table.
        command: command line above the table; None = that of this process.
        data: further keys of the file.
    """
    notes = list(notes)
    print(f"\n{title} ({machine()})\n\n{table(rows)}\n", *notes, sep="\n", flush=True)
    if out:
        command = command or shlex.join(["python", *sys.argv])
        content = {"title": title, "command": command, "machine": machine(), "rows": rows}
        content |= {"notes": notes, **(data or {})}
        write_text(out, json.dumps(content, indent=1) + "\n")
