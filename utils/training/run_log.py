"""The log of a training: log.txt, console lines, metrics.jsonl, TensorBoard, Weights & Biases."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import secrets
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from utils.base.errors import UserError
from utils.base.files import json_text, read_json_lines, write_text
from utils.base.processes import is_main_process
from utils.base.text import printable
from utils.evaluation.metric_names import metrics_in, metrics_text

# Name in metrics.jsonl -> (label, number format, unit); fixed widths keep the lines aligned.
COLUMNS = {
    "kimg": ("kimg ", "{:9.2f}", ""),
    "loss": ("loss ", "{:8.5f}", ""),
    "alignment": ("align ", "{:6.4f}", ""),
    "lr": ("lr ", "{:8.2e}", ""),
    "mask_ratio": ("mask ", "{:4.2f}", ""),
    "grad_norm": ("grad ", "{:8.4f}", ""),
    "images_per_s": ("", "{:8.1f}", " images/s"),
    "memory_gb": ("", "{:6.2f}", " GB"),
    "data_wait": ("data ", "{:5.1%}", ""),
}
WANDB_ID = "wandb_id.txt"


class Pace(NamedTuple):
    """The last step of a training, and how many seconds the steps until then may take."""

    last_step: int
    seconds_left: float


def time_text(seconds: float) -> str:
    """Return a duration in its two largest units: `45 s`, `12 min`, `3 h 05 min`, `2 d 11 h`."""
    minutes = round(seconds / 60)
    hours = round(seconds / 3600)
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 24 * 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{hours // 24} d {hours % 24:02d} h"


def metrics_line(step: int, values: Mapping[str, float], pace: Pace | None = None) -> str:
    """Return an aligned line for the console; values without a column are in metrics.jsonl only."""
    parts = [f"step {step:>8d}" + (f" of {pace.last_step}" if pace else "")]
    for name, (label, number, unit) in COLUMNS.items():
        if name in values:
            parts.append(f"{label}{number.format(values[name])}{unit}")
    if pace and step < pace.last_step:
        parts.append(f"{time_text(pace.seconds_left):>11} left")
    if skipped := values.get("skipped"):
        parts.append(f"{skipped} step(s) SKIPPED, not finite")
    if spikes := values.get("spikes"):
        parts.append(f"{spikes} loss spike(s)")
    return "  ".join(parts)


def cut_after(path: Path, step: int) -> None:
    """Drop the lines of a metrics.jsonl after `step`, and a line that a crash cut short.

    One rename replaces the file, so that a crash here loses nothing.
    """
    if not path.exists():
        return
    kept = [record for record in read_json_lines(path) if record.get("step", step + 1) <= step]
    write_text(path, "".join(json_text(record) + "\n" for record in kept))


class LineFile:
    """Text file to append to; lines that could not be written wait in memory for a retry."""

    def __init__(self, path: Path) -> None:
        self._file = open(path, "ab", buffering=0)  # noqa: SIM115
        self._unwritten = b""
        self._lock = threading.Lock()

    def write(self, line: str) -> None:
        """Add a line; never fails."""
        with self._lock:
            self._unwritten += printable(line).encode("utf-8") + b"\n"
        with contextlib.suppress(OSError):
            self._drain()

    def _drain(self) -> None:
        with self._lock:
            while self._unwritten:
                self._unwritten = self._unwritten[self._file.write(self._unwritten) :]

    def sync(self) -> None:
        """Bring every line to disk. Raises OSError if it does not take them."""
        self._drain()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Write all lines that the disk takes, and close."""
        with contextlib.suppress(OSError):
            self.sync()
        self._file.close()


class RunLog:
    """Log files of one experiment folder. Only the main process writes."""

    def __init__(
        self,
        folder: Path,
        step: int = 0,
        *,
        tensorboard: bool = True,
        wandb_config: Mapping[str, Any] | None = None,
    ) -> None:
        """Open the files, at the step that the run starts from.

        Later records, which an interrupted run left, are removed, so that each step appears once.
        wandb_config: start a Weights & Biases run that shows it; see start_wandb.
        """
        self.enabled = is_main_process()
        self.tensorboard = self.wandb = None
        if not self.enabled:
            return
        folder.mkdir(parents=True, exist_ok=True)
        if wandb_config is not None:
            self.wandb = start_wandb(folder, wandb_config, is_new=step == 0)
        cut_after(folder / "metrics.jsonl", step)
        self.text = LineFile(folder / "log.txt")
        self.lines = LineFile(folder / "metrics.jsonl")
        if tensorboard:
            # A second at import, which runs without TensorBoard need not pay.
            from torch.utils.tensorboard import SummaryWriter

            self.tensorboard = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

    def info(self, message: str) -> None:
        """Print a line for people, and add it to log.txt with the time of day."""
        if not self.enabled:
            return
        with contextlib.suppress(OSError):  # it may go to a file on a full disk
            print(message, flush=True)
        self.text.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {message}")

    def metrics(self, step: int, values: Mapping[str, float], pace: Pace | None = None) -> None:
        """Write the values of a log step to metrics.jsonl, the console and TensorBoard.

        The console's line also says how far the training is.
        """
        if not self.enabled:
            return
        self.lines.write(json_text({"step": step, **values}))
        self.info(metrics_line(step, values, pace))
        self.scalars(step, values, "train")

    def evaluation(self, step: int, settings: str, record: Mapping[str, Any]) -> None:
        """Write the metrics of an evaluation, sampled with `settings`: a line, and scalars."""
        self.info(f"step {step:>8d}  {settings}: {metrics_text(record)}")
        found = {name: record[name] for name in metrics_in([record])}
        self.scalars(step, found, f"eval, {settings}")

    def scalars(self, step: int, values: Mapping[str, float], group: str) -> None:
        """Send values to TensorBoard and Weights & Biases only, as `group/name`."""
        if self.tensorboard is not None:
            try:
                for name, value in values.items():
                    self.tensorboard.add_scalar(f"{group}/{name}", value, step)
                self.tensorboard.flush()
            except OSError as error:  # its writer does not recover
                self.tensorboard = None
                self.info(f"WARNING: TensorBoard is off until the next start: {error}")
        if self.wandb is not None:
            self.wandb.log({f"{group}/{n}": v for n, v in values.items()}, step=step)

    def sync(self) -> None:
        """Bring all lines to disk; call it before a checkpoint, whose lines must not be lost.

        Raises OSError if the disk does not take them.
        """
        if self.enabled:
            self.text.sync()
            self.lines.sync()

    def close(self) -> None:
        """Write all lines that the disk takes, and close all files."""
        if not self.enabled:
            return
        self.text.close()
        self.lines.close()
        if self.tensorboard is not None:
            self.tensorboard.close()
        if self.wandb is not None:
            self.wandb.finish()


def require_wandb() -> None:
    """Raise UserError unless the optional package wandb is installed."""
    if importlib.util.find_spec("wandb") is None:
        raise UserError("--use_wandb: needs the package wandb; pip install wandb")


def start_wandb(folder: Path, config: Mapping[str, Any], *, is_new: bool) -> Any:
    """Start, or go on with, the Weights & Biases run of an experiment folder, and show its config.

    The run is named after the folder, which keeps its identifier: every start continues one run,
    offline too. Project, entity and group come from wandb's own variables (WANDB_PROJECT,
    WANDB_ENTITY, WANDB_RUN_GROUP), and so does another identifier (WANDB_RUN_ID).
    is_new: the training begins; a run that the folder held before ends.
    Raises UserError if it does not start, for example without a login.
    """
    import wandb  # optional

    kept = folder / WANDB_ID
    if is_new or not kept.exists():
        write_text(kept, f"{secrets.token_hex(4)}\n")
    run_id = os.environ.get("WANDB_RUN_ID") or kept.read_text(encoding="utf-8").strip()
    try:
        return wandb.init(
            project=os.environ.get("WANDB_PROJECT", "text-to-face"),
            name=folder.name,
            dir=str(folder),
            config=dict(config),
            id=run_id,
            resume="allow",
            allow_val_change=True,  # a run that goes on may be longer than before
        )
    except wandb.Error as error:
        raise UserError(f"--use_wandb: {error}; WANDB_MODE=offline needs no account") from error
