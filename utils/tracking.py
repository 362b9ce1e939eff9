"""What a run tells: progress bars, log.txt, console lines, metrics.jsonl, TensorBoard, wandb."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import sys
import threading
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import torch
from tqdm import tqdm

from utils.errors import UserError
from utils.figure_names import figures_in

if TYPE_CHECKING:
    from utils.step_guard import Verdict

# Name in metrics.jsonl -> (label, number format, unit); fixed widths keep the lines aligned.
COLUMNS = {
    "kimg": ("kimg ", "{:9.2f}", ""),
    "loss": ("loss ", "{:8.5f}", ""),
    "lr": ("lr ", "{:8.2e}", ""),
    "mask_ratio": ("mask ", "{:4.2f}", ""),
    "grad_norm": ("grad ", "{:8.4f}", ""),
    "images_per_s": ("", "{:8.1f}", " images/s"),
    "memory_gb": ("", "{:6.2f}", " GB"),
    "data_wait": ("data ", "{:5.1%}", ""),
}
# Figures that depend on the clock and the machine; all others are the same in every repetition.
CLOCK_FIELDS = ("images_per_s", "memory_gb", "data_wait")


def is_main_process() -> bool:
    """Whether this process is the one that talks and writes (launchers set RANK)."""
    return int(os.environ.get("RANK", 0)) == 0


def progress(
    iterable: Iterable | None = None,
    desc: str = "",
    total: int | None = None,
    unit: str = "it",
    initial: int = 0,
    scale: bool = False,
) -> tqdm:
    """The project's one progress bar style; silent on every process but the first.

    `total` and `initial` are counts of `unit`, shown in k, M and G if `scale`. Without an iterable,
    call `.update(n)`.
    Output that is not a terminal gets a line now and then instead of a redrawn bar.
    """
    on_terminal = sys.stderr.isatty()
    return tqdm(
        iterable,
        desc=f"{desc:<24}" if desc else None,
        total=total,
        unit=f" {unit}",
        initial=initial,
        unit_scale=scale,
        dynamic_ncols=on_terminal,
        mininterval=0.2 if on_terminal else 15,
        maxinterval=10 if on_terminal else 60,
        disable=not is_main_process(),
    )


def metrics_line(step: int, figures: Mapping[str, float]) -> str:
    """One aligned line for the console; figures without a column are left to metrics.jsonl."""
    parts = [f"step {step:>8d}"]
    for name, (label, number, unit) in COLUMNS.items():
        if name in figures:
            parts.append(f"{label}{number.format(figures[name])}{unit}")
    if skipped := figures.get("skipped"):
        parts.append(f"{skipped} step(s) SKIPPED, not finite")
    if spikes := figures.get("spikes"):
        parts.append(f"{spikes} loss spike(s)")
    return "  ".join(parts)


def cut_after(path: Path, step: int) -> None:
    """Drop the lines of a metrics.jsonl that lie after `step`, and a line torn by a crash.

    The file is replaced in one rename, so that a crash here loses nothing.
    """
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except (ValueError, KeyError, TypeError):
            continue
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text("".join(line + "\n" for line in kept))
    os.replace(temporary, path)


def figures_text(record: Mapping[str, Any]) -> str:
    """What an evaluation found, for people."""
    text = f"Fréchet distance {record['frechet_distance']:.4g}"
    score = record["clip_score"]
    return text if score is None else f"{text}, CLIP score {score:.2f}"


class LineFile:
    """A text file that lines are added to; what a full disk does not take is kept and follows."""

    def __init__(self, path: Path) -> None:
        self._file = open(path, "ab", buffering=0)  # noqa: SIM115
        self._unwritten = b""
        self._lock = threading.Lock()

    def write(self, line: str) -> None:
        """Add a line; never fails."""
        with self._lock:
            self._unwritten += line.encode() + b"\n"
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
        """Bring to disk what it takes, and close."""
        with contextlib.suppress(OSError):
            self.sync()
        self._file.close()


class RunLog:
    """Writes the log files of one experiment folder; does nothing on other processes.

    `step`: the step that the run starts from. Records after it, left by an interrupted run that
    is now being continued, are removed, so that each step appears once.
    """

    def __init__(
        self,
        folder: Path,
        step: int = 0,
        *,
        tensorboard: bool = True,
        wandb_config: Mapping[str, Any] | None = None,
    ) -> None:
        """`wandb_config`: start a Weights & Biases run that shows this; see start_wandb."""
        self.enabled = is_main_process()
        self.tensorboard = self.wandb = None
        if not self.enabled:
            return
        folder.mkdir(parents=True, exist_ok=True)
        if wandb_config is not None:
            self.wandb = start_wandb(folder, wandb_config)
        cut_after(folder / "metrics.jsonl", step)
        self.text = LineFile(folder / "log.txt")
        self.lines = LineFile(folder / "metrics.jsonl")
        if tensorboard:
            # Imported here because it takes a second that users of progress() alone need not pay.
            from torch.utils.tensorboard import SummaryWriter

            self.tensorboard = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

    def info(self, message: str) -> None:
        """A line for people: console and log.txt (there with the time of day)."""
        if not self.enabled:
            return
        with contextlib.suppress(OSError):  # it may go to a file on a full disk
            print(message, flush=True)
        self.text.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {message}")

    def metrics(self, step: int, figures: Mapping[str, float]) -> None:
        """The figures of a log step, to metrics.jsonl, the console and TensorBoard."""
        if not self.enabled:
            return
        self.lines.write(json.dumps({"step": step, **figures}))
        self.info(metrics_line(step, figures))
        self.scalars(step, figures, "train")

    def evaluation(self, step: int, way: str, record: Mapping[str, Any]) -> None:
        """How good the weights of `step` are, sampled in this way: a line, and scalars."""
        self.info(f"step {step:>8d}  {way}: {figures_text(record)}")
        figures = {name: record[name] for name in figures_in([record])}
        self.scalars(step, figures, f"eval, {way}")

    def scalars(self, step: int, figures: Mapping[str, float], group: str) -> None:
        """Figures for TensorBoard and Weights & Biases only, drawn as `group/name`."""
        if self.tensorboard is not None:
            try:
                for name, value in figures.items():
                    self.tensorboard.add_scalar(f"{group}/{name}", value, step)
                self.tensorboard.flush()
            except OSError as error:  # its writer does not recover
                self.tensorboard = None
                self.info(f"WARNING: TensorBoard is off until the next start: {error}")
        if self.wandb is not None:
            self.wandb.log({f"{group}/{n}": v for n, v in figures.items()}, step=step)

    def sync(self) -> None:
        """Bring all lines to disk: call before a checkpoint, whose lines must not be lost.

        Raises OSError if the disk does not take them.
        """
        if self.enabled:
            self.text.sync()
            self.lines.sync()

    def close(self) -> None:
        """Bring to disk what it takes, and close all files."""
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


def start_wandb(folder: Path, config: Mapping[str, Any]) -> Any:
    """A Weights & Biases run named after the experiment folder, which shows its config.

    Project, entity and group come from wandb's own variables (WANDB_PROJECT, WANDB_ENTITY,
    WANDB_RUN_GROUP). Raises UserError if it does not start, e.g. for want of a login.
    """
    import wandb  # optional

    project = os.environ.get("WANDB_PROJECT", "text-to-face")
    try:
        return wandb.init(project=project, name=folder.name, dir=str(folder), config=dict(config))
    except wandb.Error as error:
        raise UserError(f"--use_wandb: {error}; WANDB_MODE=offline needs no account") from error


class Window:
    """Figures of the steps since the last log line, the same in all processes.

    Sums stay on the device, so nothing waits. `seconds` and `waiting` (for data) are wall-clock
    time.
    """

    SUMS = ("loss", "grad_norm", "skipped", "spikes")

    def __init__(self, device: torch.device) -> None:
        self.sums = torch.zeros(len(self.SUMS), device=device)
        self.reset()

    def reset(self) -> None:
        """Start a new window."""
        self.sums.zero_()
        self.steps, self.seconds, self.waiting = 0, 0.0, 0.0

    def add(self, loss: torch.Tensor, grad_norm: torch.Tensor, verdict: Verdict) -> None:
        """A step; loss and gradient norm count if it was a good one."""
        good = verdict.good
        figures = (
            torch.where(good, loss, 0),
            torch.where(good, grad_norm, 0),
            ~good,
            verdict.spike,
        )
        self.sums += torch.stack([figure.float() for figure in figures])
        self.steps += 1

    def means(self) -> dict[str, float]:
        """Loss and gradient norm per good step, and how many were skipped or spikes.

        Waits for the device.
        """
        loss, grad_norm, skipped, spikes = self.sums.tolist()
        good = self.steps - int(skipped)
        figures = {"loss": loss / good, "grad_norm": grad_norm / good} if good else {}
        return {**figures, "skipped": int(skipped), "spikes": int(spikes)}

    def state(self) -> dict[str, Any]:
        """For a checkpoint that falls between two log lines."""
        return {
            "sums": self.sums.clone(),
            "steps": self.steps,
            "seconds": self.seconds,
            "waiting": self.waiting,
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Continue a saved window."""
        self.sums.copy_(state["sums"])
        self.steps, self.seconds = state["steps"], state["seconds"]
        self.waiting = state["waiting"]


def memory_gb(device: torch.device) -> float:
    """Peak memory of a CUDA device, else the memory this process holds now (GB = 1e9 bytes)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    return psutil.Process().memory_info().rss / 1e9
