"""Trainings in the process of the test, and readers of their metrics and checkpoints."""

import contextlib
import json
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from accelerate.state import AcceleratorState, GradientState

from train_latent_t2f import main, train
from utils.base.launch import stop_signals
from utils.config.load import load_config
from utils.pretrained.checkpoint_files import load_checkpoint
from utils.training.checkpoint import list_checkpoints

# Fields of metrics.jsonl that depend on the clock; a repeated training has all others equal.
CLOCK_FIELDS = ("images_per_s", "memory_gb", "data_wait", "cpu_s")
# With these, a training has one kind of blocks and one number of tokens to compile. Trainings of
# `faces` with four images in a process compile the same code, which torch finds in its cache.
FEW_BLOCKS = ("model.use_decoder=false", "model.mae_loss_coef=0", "model.unmasked_tail=0")


@contextlib.contextmanager
def fresh_process() -> Iterator[None]:
    """Give a training the state of a new process; afterwards restore all as it was.

    Accelerate keeps the precision of its first training, and refuses another one.
    """
    forget_accelerator()
    numbers = stop_signals()
    handlers = [signal.getsignal(number) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, handlers, strict=True):
            signal.signal(number, handler)
        forget_accelerator()


def forget_accelerator() -> None:
    """Reset what accelerate keeps for the life of a process."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def run_script(*words: object) -> int:
    """Run train_latent_t2f.py without a new process; return its exit code."""
    given = sys.argv
    sys.argv = ["train_latent_t2f.py", *map(str, words)]
    try:
        with fresh_process():
            main()
    except SystemExit as end:
        return int(end.code or 0)
    finally:
        sys.argv = given
    return 0


def run(
    config: Path,
    folder: Path,
    *overrides: str,
    start_from: Path | None = None,
    enable_eval: bool = False,
) -> Path:
    """Train into `folder` without a new process; return `folder`.

    The training must end with exit code 0. `overrides`: settings over those of the config file.
    """
    with fresh_process():
        assert train(load_config(config, overrides), folder, start_from, enable_eval) == 0
    return folder


def metrics(folder: Path, without: Sequence[str] = CLOCK_FIELDS) -> list[dict]:
    """Return the lines of metrics.jsonl, without the fields `without`."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in without} for line in lines]


def flat(value, path: str = "") -> dict:
    """Return nested dicts and lists as one dict of paths; tensors become bytes."""
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list | tuple):
        items = enumerate(value)
    else:
        return {path: value.numpy().tobytes() if isinstance(value, torch.Tensor) else value}
    return {k: v for key, item in items for k, v in flat(item, f"{path}/{key}").items()}


def final_state(folder: Path) -> dict:
    """Return the content of the last checkpoint, flat, without its times."""
    *_, path = list_checkpoints(folder / "checkpoints").values()
    state = load_checkpoint(path)
    for key in ("seconds", "waiting", "processor_seconds"):
        del state["window"][key]
    return flat(state)
