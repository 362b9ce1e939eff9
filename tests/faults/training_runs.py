"""Trainings in processes of their own: start one process or several, interrupt, compare."""

import json
import random
import signal
from collections.abc import Sequence
from pathlib import Path

from harness import Run, environments_of_ranks, signal_all_within
from trainings import final_state, metrics

SCRIPT = "train_latent_t2f.py"
STEPS, CKPT_EVERY = 50, 5
SETTINGS = (
    f"train.max_num_steps={STEPS}",
    f"log.ckpt_every={CKPT_EVERY}",
    "log.log_every=4",
    "log.observe_every=20",
    "train.grad_accum=1",
)


def arguments(config: Path, folder: Path, *settings: str) -> list[str]:
    """Return the command line of a training into `folder`."""
    where = ["--results_dir", str(folder.parent), "--exp_name", folder.name]
    return ["--config", str(config), *where, *settings]


def start(config: Path, folder: Path, *settings: str, output: Path | None = None, **options) -> Run:
    """Start a training of one process into `folder`.

    `output`: file of its output (default: beside `folder`), `options`: those of Run.
    """
    output = output or folder.with_name(f"{folder.name}.txt")
    return Run(SCRIPT, arguments(config, folder, *SETTINGS, *settings), output, **options)


def start_ranks(config: Path, folder: Path, *settings: str, processes: int = 2) -> list[Run]:
    """Start the processes of one training like a cluster does, without a launcher.

    Rank r writes its output to the file `{folder}_{r}.txt`.
    """
    runs = []
    for rank, environment in enumerate(environments_of_ranks(processes)):
        output = folder.with_name(f"{folder.name}_{rank}.txt")
        words = arguments(config, folder, *SETTINGS, *settings)
        runs.append(Run(SCRIPT, words, output, environment=environment))
    return runs


def logged_steps(folder: Path) -> int:
    """Return the number of lines of metrics.jsonl; 0 if there is no file."""
    path = folder / "metrics.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0


def interrupt(
    runs: Sequence[Run], folder: Path, rng: random.Random, number: signal.Signals, within: float
) -> list[int]:
    """Send all processes a signal within `within` seconds after the next line of metrics.jsonl.

    Return their exit codes.
    """
    before = logged_steps(folder)
    runs[0].wait_until(lambda: logged_steps(folder) > before)
    return signal_all_within(within, rng, number, runs)


def outcome(folder: Path) -> tuple[dict, list[str]]:
    """Return the last checkpoint of a training and its lines of metrics.jsonl, without times."""
    return final_state(folder), [json.dumps(line) for line in metrics(folder)]
