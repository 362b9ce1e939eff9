"""Runs the project's scripts as real processes and disturbs them: signals, full disks, two hosts.

    rng = seeded("a name")                       # prints its seed; FAULT_SEED=… repeats it
    run = Run("train_latent_t2f.py", arguments, output=tmp_path / "out.txt")
    code = run.signal_within(0.5, rng, signal.SIGKILL)
    with small_disk(tmp_path / "disk", 1_000_000) as folder: …
    Run(…, before=partial(count_calls, file, {"ClipEncoder.encode_texts"}))  # see called()

Scripts are forked from a process that has imported the modules that all of them need. A start takes
a tenth of a second instead of many. After the fork they are processes like any other.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import runpy
import signal
import socket
import subprocess
import sys
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType

import pytest

ROOT = Path(__file__).resolve().parents[2]
KILLS = int(os.environ.get("FAULT_KILLS", "3"))  # kills of each script; `make soak` sets more
# models.clip imports torch._dynamo, which every optimizer needs; this file imports pytest.
PRELOADED = [
    "train_latent_t2f",
    "eval_latent_t2f",
    "utils.data.preprocess_jobs",
    "models.clip",
    "torch._inductor.compile_fx",
    "pytest",
]


def seeded(name: str) -> random.Random:
    """Return a generator for one test and print its seed; $FAULT_SEED sets the seed."""
    seed = os.environ.get("FAULT_SEED") or str(random.SystemRandom().randrange(10**6))
    print(f"{name}: FAULT_SEED={seed}")
    return random.Random(zlib.crc32(f"{name}/{seed}".encode()))


def _forking() -> multiprocessing.context.BaseContext:
    """Return the context whose fork server has imported PRELOADED; start the server if needed."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = str(ROOT)  # the fork server imports from there
    try:
        multiprocessing.forkserver.ensure_running()
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before
    return context


def count_calls(file: Path, functions: set[str]) -> None:
    """Append each call of `functions` in this process, and the length of its argument, to `file`.

    Functions are named `Class.method`. Calls in the main thread count.
    """
    notes = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def on_event(frame: FrameType, event: str, _: object) -> None:
        """Note the call (called by Python's profiling)."""
        if event == "call" and (name := frame.f_code.co_qualname) in functions:
            argument = frame.f_locals[frame.f_code.co_varnames[1]]  # the first is self
            os.write(notes, f"{name} {len(argument)}\n".encode())

    sys.setprofile(on_event)


def called(file: Path) -> Counter[str]:
    """Return function -> sum of the lengths of its arguments, from a file of count_calls."""
    total = Counter()
    for line in file.read_text().splitlines() if file.exists() else []:
        name, length = line.split()
        total[name] += int(length)
    return total


def die_after(function: str, events: int) -> None:
    """Kill this process (kill -9) `events` calls and returns after the first call of `function`."""
    left: int | None = None

    def on_event(frame: FrameType, event: str, _: object) -> None:
        """Count the event (called by Python's profiling)."""
        nonlocal left
        if left is None and event == "call" and frame.f_code.co_qualname == function:
            left = events
        if left is not None:
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.setprofile(on_event)


def _become(
    script: str,
    arguments: list[str],
    output: str,
    environment: dict[str, str],
    folder: str,
    before: Callable[[], None] | None,
) -> None:
    """Run the script in this forked process; it exits with the exit code of the script."""
    os.setsid()  # a group of its own, so that one kill reaches its children
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for number in (1, 2):
        os.dup2(file, number)
    os.environ.update(environment)
    os.chdir(folder)
    sys.argv = [script, *arguments]
    sys.path.insert(0, str(ROOT / Path(script).parent))
    if before is not None:
        before()
    runpy.run_path(str(ROOT / script), run_name="__main__")


class Run:
    """Process of one of the project's scripts; it appends its output to the file `output`.

    `script`: path from the project's root.
    `folder`: working folder of the process.
    `cold`: start a new Python, like a user, instead of a fork.
    `launcher`: words between Python and the script, for example
    `("-m", "torch.distributed.run", "--nproc_per_node", "2")`; it implies `cold`.
    `prefix`: words before Python; it implies `cold`.
    `before`: function that a forked process calls before the script begins.
    """

    def __init__(
        self,
        script: str,
        arguments: Sequence[str | Path],
        output: Path,
        *,
        environment: dict[str, str] | None = None,
        folder: Path = ROOT,
        cold: bool = False,
        launcher: Sequence[str] = (),
        prefix: Sequence[str] = (),
        before: Callable[[], None] | None = None,
    ) -> None:
        self.output, self.environment = output, environment or {}
        words = [str(argument) for argument in arguments]
        if cold or launcher or prefix:
            command = [*prefix, sys.executable, *launcher, str(ROOT / script), *words]
            with open(output, "ab") as file:
                self._process = subprocess.Popen(
                    command,
                    cwd=folder,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    env={**os.environ, **self.environment},
                    start_new_session=True,
                )
        else:
            target = (script, words, str(output), self.environment, str(folder), before)
            self._process = _forking().Process(target=_become, args=target)
            self._process.start()
        self.pid = self._process.pid

    def poll(self) -> int | None:
        """Return the exit code (negative: killed by that signal); None while the process runs."""
        if isinstance(self._process, subprocess.Popen):
            return self._process.poll()
        return self._process.exitcode

    def wait(self, timeout: float = 300) -> int:
        """Wait for the end and return the exit code.

        After `timeout` seconds, kill the process and raise AssertionError.
        """
        deadline = time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() > deadline:
                self.kill()
                raise AssertionError(f"still running after {timeout} s:\n{self.said()}")
            time.sleep(0.01)
        return code

    def wait_until(self, condition: Callable[[], object], timeout: float = 300) -> bool:
        """Wait for a condition and return True; return False if the process ends first.

        After `timeout` seconds, kill the process and raise AssertionError.
        """
        deadline = time.monotonic() + timeout
        while not condition():
            if self.poll() is not None:
                return False
            if time.monotonic() > deadline:
                self.kill()
                raise AssertionError(f"it did not happen in {timeout} s:\n{self.said()}")
            time.sleep(0.01)
        return True

    def said(self) -> str:
        """Return all output so far."""
        return self.output.read_text(errors="replace") if self.output.exists() else ""

    def send(self, number: signal.Signals) -> None:
        """Send a signal to this process alone."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill (kill -9) this process and all that it has started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        while self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            time.sleep(0.01)

    def signal_within(
        self, seconds: float, rng: random.Random, number: signal.Signals = signal.SIGKILL
    ) -> int:
        """Send a signal at a random moment within `seconds`; return the exit code.

        SIGKILL goes to this process and all that it has started, other signals to this one alone.
        """
        return signal_all_within(seconds, rng, number, [self])[0]

    def __enter__(self) -> Run:
        """Return the process itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Kill the process if it still runs."""
        self.kill()


def environments_of_ranks(processes: int) -> list[dict[str, str]]:
    """Return the environment of each process of a job, as a cluster's launcher sets it."""
    with socket.create_server(("localhost", 0)) as server:
        port = server.getsockname()[1]
    common = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    common |= {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
    return [common | {"RANK": str(r), "LOCAL_RANK": str(r)} for r in range(processes)]


def signal_all_within(
    seconds: float, rng: random.Random, number: signal.Signals, runs: Sequence[Run]
) -> list[int]:
    """Send a signal to several processes at one random moment; return their exit codes."""
    deadline = time.monotonic() + rng.uniform(0, seconds)
    runs[0].wait_until(lambda: time.monotonic() >= deadline)
    for run in runs:
        run.kill() if number == signal.SIGKILL else run.send(number)
    return [run.wait() for run in runs]


@contextlib.contextmanager
def two_hosts() -> Iterator[list[tuple[list[str], str, dict[str, str]]]]:
    """Yield (prefix of commands, address, environment) of each of two hosts of a network.

    The hosts are network namespaces. Without the right to make those, both are this host.
    """
    names = [f"t2f{os.getpid()}{end}" for end in "ab"]
    devices = [f"v{os.getpid()}{end}" for end in "ab"]
    try:
        for name in names:
            subprocess.run(["ip", "netns", "add", name], check=True, capture_output=True)
        veth = ["ip", "link", "add", devices[0], "type", "veth", "peer", "name", devices[1]]
        subprocess.run(veth, check=True, capture_output=True)
        hosts = []
        for number, (name, device) in enumerate(zip(names, devices, strict=True), 1):
            inside = ["ip", "netns", "exec", name]
            address = f"10.77.0.{number}"
            for command in (
                ["ip", "link", "set", device, "netns", name],
                [*inside, "ip", "link", "set", "lo", "up"],
                [*inside, "ip", "address", "add", f"{address}/24", "dev", device],
                [*inside, "ip", "link", "set", device, "up"],
            ):
                subprocess.run(command, check=True, capture_output=True)
            hosts.append((inside, address, {"GLOO_SOCKET_IFNAME": device}))
    except (FileNotFoundError, subprocess.CalledProcessError):
        hosts = [([], "localhost", {})] * 2
    try:
        yield hosts
    finally:
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                subprocess.run(["ip", "netns", "delete", name], capture_output=True)


@contextlib.contextmanager
def small_disk(folder: Path, size: int) -> Iterator[Path]:
    """Mount a file system of `size` bytes at `folder`; skip the test if that is not allowed."""
    folder.mkdir(parents=True, exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    try:
        done = subprocess.run(mount, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("there is no mount command")
    if done.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill_disk(folder: Path, leave: int = 0) -> Path:
    """Write a file that leaves `leave` bytes free on the folder's disk; return its path."""
    filler = folder / "filler"
    # Unbuffered, as a buffer that finds no room raises once more when the file is closed.
    with contextlib.suppress(OSError), open(filler, "wb", buffering=0) as file:
        while (disk := os.statvfs(folder)).f_bavail * disk.f_frsize >= leave + 4096:
            file.write(bytes(4096))
    return filler
