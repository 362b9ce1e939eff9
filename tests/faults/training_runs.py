"""Trainings as processes: started alone or as the ranks of one training, killed, compared."""

import json
import random
import signal
import socket
from collections.abc import Sequence
from pathlib import Path

from harness import Run, signal_all_within
from trainings import final_state, metrics

SCRIPT = "train_latent_t2f.py"
STEPS, CKPT_EVERY = 50, 5
SETTINGS = (
    f"train.max_num_steps={STEPS}",
    f"log.ckpt_every={CKPT_EVERY}",
    "log.log_every=4",
    "train.grad_accum=1",
)


def arguments(config: Path, folder: Path, *settings: str) -> list[str]:
    where = ["--results_dir", str(folder.parent), "--exp_name", folder.name]
    return ["--config", str(config), *where, *settings]


def start(config: Path, folder: Path, *settings: str, output: Path | None = None, **options) -> Run:
    """A training of one process into `folder`; its output goes to a file beside it."""
    output = output or folder.with_name(f"{folder.name}.txt")
    return Run(SCRIPT, arguments(config, folder, *SETTINGS, *settings), output, **options)


def start_ranks(config: Path, folder: Path, *settings: str, processes: int = 2) -> list[Run]:
    """The processes of one training as a cluster starts them, without a launcher between."""
    with socket.create_server(("localhost", 0)) as server:
        port = server.getsockname()[1]
    common = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "WORLD_SIZE": str(processes)}
    runs = []
    for rank in range(processes):
        environment = {**common, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        environment["LOCAL_WORLD_SIZE"] = str(processes)
        output = folder.with_name(f"{folder.name}_{rank}.txt")
        words = arguments(config, folder, *SETTINGS, *settings)
        runs.append(Run(SCRIPT, words, output, environment=environment))
    return runs


def logged_steps(folder: Path) -> int:
    path = folder / "metrics.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0


def interrupt(
    runs: Sequence[Run], folder: Path, rng: random.Random, number: signal.Signals, within: float
) -> list[int]:
    """Send all processes a signal at a random moment after a new log line; their exit codes."""
    before = logged_steps(folder)
    runs[0].wait_until(lambda: logged_steps(folder) > before)
    return signal_all_within(within, rng, number, runs)


def outcome(folder: Path) -> tuple[dict, list[str]]:
    """All that a training leaves: its last state, and the lines of metrics.jsonl, bit for bit."""
    return final_state(folder), [json.dumps(line) for line in metrics(folder)]
