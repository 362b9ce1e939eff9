"""Trainings for tests: run one in a process of its own or here, and read what it left."""

import contextlib
import json
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from accelerate.state import AcceleratorState, GradientState

from train_latent_t2f import train
from utils.config.load import load_config
from utils.pretrained.checkpoint_files import load_checkpoint
from utils.training.checkpoint import list_checkpoints

# Values that depend on the clock and the machine; all others are equal in every repetition.
CLOCK_FIELDS = ("images_per_s", "memory_gb", "data_wait")


@contextlib.contextmanager
def fresh_process() -> Iterator[None]:
    """What a training finds and leaves as if this process were for it alone."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
    handlers = [signal.getsignal(number) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, handlers, strict=True):
            signal.signal(number, handler)


def run(
    config: Path,
    folder: Path,
    *overrides: str,
    start_from: Path | None = None,
    enable_eval: bool = False,
) -> Path:
    """Train in this process, as a new one would."""
    with fresh_process():
        assert train(load_config(config, overrides), folder, start_from, enable_eval) == 0
    return folder


def metrics(folder: Path, without: Sequence[str] = CLOCK_FIELDS) -> list[dict]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in without} for line in lines]


def flat(value, path: str = "") -> dict:
    """Nested dicts and lists as one dict, tensors as bytes."""
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list | tuple):
        items = enumerate(value)
    else:
        return {path: value.numpy().tobytes() if isinstance(value, torch.Tensor) else value}
    return {k: v for key, item in items for k, v in flat(item, f"{path}/{key}").items()}


def final_state(folder: Path) -> dict:
    """The last checkpoint without its clock readings."""
    *_, path = list_checkpoints(folder / "checkpoints").values()
    state = load_checkpoint(path)
    for key in ("seconds", "waiting"):
        del state["window"][key]
    return flat(state)
