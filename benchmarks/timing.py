"""What every benchmark needs: interleaved timing, peak memory, the machine's own rate, a report.

A variant is a function without arguments that does the work once. `interleaved` times variants of
one process; `compare` gives each variant a process of its own, so that memory can be told apart.
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
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
Work = Callable[[], Any]


@dataclass
class Timing:
    """Seconds of each repetition, the peak memory in them (bytes), what the last one returned."""

    seconds: list[float] = field(default_factory=list)
    peak: int = 0
    result: Any = None

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


def timed(work: Work) -> tuple[float, Any]:
    """Seconds that `work` takes, device included, and its result."""
    start = time.perf_counter()
    result = work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start, result


def interleaved(variants: Mapping[str, Work], repeats: int = 5, warmup: int = 1) -> dict:
    """Time variants in turn, so that all see the same machine: name -> Timing, without its peak."""
    timings = {name: Timing() for name in variants}
    for repeat in range(warmup + repeats):
        for name, work in variants.items():
            seconds, timings[name].result = timed(work)
            if repeat >= warmup:
                timings[name].seconds.append(seconds)
    return timings


def compare(
    setups: Mapping[str, Callable[[], Work]], repeats: int = 5, warmup: int = 1, *, rounds: int = 0
) -> dict:
    """As `interleaved`, with a process for each variant and its peak memory: name -> Timing.

    setups: picklable functions that build the work, which returns picklable things. They run one at
    a time, with as many threads as this process. Peaks are taken after the warm-up.
    rounds: 0 = all are in memory at once and take turns. Otherwise each is alone there, started
    anew in so many rounds of `repeats`, for variants of which only one fits.
    """
    timings = {name: Timing() for name in setups}
    if rounds:
        for _ in range(rounds):
            for name, setup in setups.items():
                _take_turns({name: setup}, timings, repeats, warmup)
    else:
        _take_turns(setups, timings, repeats, warmup)
    return timings


def _take_turns(
    setups: Mapping[str, Callable[[], Work]], timings: dict, repeats: int, warmup: int
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
            theirs.close()  # so that its end is noticed
            _answer(name, connection)  # ready: built and warmed up
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
    try:
        return connection.recv()
    except EOFError as error:
        raise RuntimeError(f"the process of variant '{name}' ended; its error is above") from error


def _serve(setup: Callable[[], Work], connection: Connection, threads: int, warmup: int) -> None:
    """What a variant's process does: build, warm up, then one repetition for each message."""
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
    """Forget the largest memory so far."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory() -> int:
    """Largest memory since `reset_peak`, in bytes: on the GPU, or resident in this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(r"VmHWM:\s*(\d+)", status)[1])


def matmul_rate(dtype: torch.dtype, size: int = 2048, seconds: float = 1.0) -> float:
    """FLOP/s that a large square matrix product reaches here: the median over `seconds`."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    timed(lambda: a @ b)
    taken = []
    while sum(taken) < seconds:
        taken.append(timed(lambda: a @ b)[0])
    return 2 * size**3 / statistics.median(taken)


def machine() -> str:
    """One line: processor or GPU, threads, versions."""
    if torch.cuda.is_available():
        name = torch.cuda.get_device_name()
    else:
        found = re.search(r"model name\s*:\s*(.*)", Path("/proc/cpuinfo").read_text())
        name = f"{found[1] if found else platform.machine()}, {torch.get_num_threads()} threads"
    return f"{name}; PyTorch {torch.__version__}, Python {platform.python_version()}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags that all benchmarks share; `start` acts on them."""
    parser.add_argument("--threads", type=int, default=2, help="processor cores to use")
    parser.add_argument("--repeats", type=int, default=5, help="interleaved repetitions")
    parser.add_argument("--out", type=Path, help="write the figures here, for docs/performance.md")


def start(args: argparse.Namespace) -> None:
    """Hold this process and its children to `--threads` cores, as on a machine that has no more."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.threads])
    torch.set_num_threads(args.threads)


def table(rows: Iterable[Mapping[str, Any]]) -> str:
    """Markdown of rows with the same keys; floats with three digits."""
    rows = list(rows)
    lines = ["| " + " | ".join(rows[0]) + " |", "|" + "---|" * len(rows[0])]
    lines += ["| " + " | ".join(_shown(value) for value in row.values()) + " |" for row in rows]
    return "\n".join(lines)


def _shown(value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def report(
    out: Path | None,
    title: str,
    rows: list[dict[str, Any]],
    notes: Iterable[str] = (),
    command: str | None = None,
) -> None:
    """Print a table, and write it to the JSON file `out` that benchmarks/table.py reads.

    rows: plain values by column title, unit included. notes: sentences below the table.
    """
    notes = list(notes)
    print(f"\n{title} ({machine()})\n\n{table(rows)}\n", *notes, sep="\n", flush=True)
    if out:
        command = command or shlex.join(["python", *sys.argv])
        content = {"title": title, "command": command, "machine": machine(), "rows": rows}
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps({**content, "notes": notes}, indent=1) + "\n")
