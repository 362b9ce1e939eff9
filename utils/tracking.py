"""What a run tells: progress bars, log.txt, console lines, metrics.jsonl, TensorBoard, wandb."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import torch
from tqdm import tqdm

from utils.errors import UserError

if TYPE_CHECKING:
    from accelerate import Accelerator  # slow to import, and progress() does not need it

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
        self.text = open(folder / "log.txt", "a", buffering=1)  # noqa: SIM115
        self.lines = open(folder / "metrics.jsonl", "a", buffering=1)  # noqa: SIM115
        if tensorboard:
            # Imported here because it takes a second that users of progress() alone need not pay.
            from torch.utils.tensorboard import SummaryWriter

            self.tensorboard = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

    def info(self, message: str) -> None:
        """A line for people: console and log.txt (there with the time of day)."""
        if not self.enabled:
            return
        print(message, flush=True)
        self.text.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {message}\n")

    def metrics(self, step: int, figures: Mapping[str, float]) -> None:
        """The figures of a log step, to metrics.jsonl, the console and TensorBoard."""
        if not self.enabled:
            return
        self.lines.write(json.dumps({"step": step, **figures}) + "\n")
        self.info(metrics_line(step, figures))
        self.scalars(step, figures, "train")

    def evaluation(self, step: int, guidance: str, record: Mapping[str, Any]) -> None:
        """How good the weights of `step` are: a line, and TensorBoard scalars."""
        self.info(f"step {step:>8d}  {guidance}: {figures_text(record)}")
        figures = {name: record[name] for name in ("frechet_distance", "clip_score")}
        figures = {name: value for name, value in figures.items() if value is not None}
        self.scalars(step, figures, f"eval, {guidance}")

    def scalars(self, step: int, figures: Mapping[str, float], group: str) -> None:
        """Figures for TensorBoard and Weights & Biases only, drawn as `group/name`."""
        if self.tensorboard is not None:
            for name, value in figures.items():
                self.tensorboard.add_scalar(f"{group}/{name}", value, step)
        if self.wandb is not None:
            self.wandb.log({f"{group}/{n}": v for n, v in figures.items()}, step=step)

    def flush(self) -> None:
        """Bring everything to disk: call before a checkpoint, whose log lines must not be lost."""
        if not self.enabled:
            return
        for file in (self.text, self.lines):
            file.flush()
            os.fsync(file.fileno())
        if self.tensorboard is not None:
            self.tensorboard.flush()

    def close(self) -> None:
        """Flush and close all files."""
        if not self.enabled:
            return
        self.flush()
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
    """Figures of the steps since the last log line; sums stay on the device, so nothing waits.

    `loss` is this process's share; `seconds` and `waiting` (for data) are wall-clock time.
    """

    def __init__(self, device: torch.device) -> None:
        self.loss = torch.zeros((), device=device)
        self.grad_norm = torch.zeros((), device=device)
        self.reset()

    def reset(self) -> None:
        """Start a new window."""
        self.loss.zero_()
        self.grad_norm.zero_()
        self.steps, self.seconds, self.waiting = 0, 0.0, 0.0

    def means(self, accelerator: Accelerator) -> dict[str, float]:
        """Loss over all processes and gradient norm per step; waits for the device."""
        loss = accelerator.reduce(self.loss, reduction="mean")
        return {
            "loss": loss.item() / self.steps,
            "grad_norm": self.grad_norm.item() / self.steps,
        }

    def state(self, accelerator: Accelerator) -> dict[str, Any]:
        """For a checkpoint that falls between two log lines; called by all processes."""
        losses = accelerator.gather(self.loss[None]).cpu()
        return {
            "loss": losses,
            "grad_norm": self.grad_norm.cpu(),
            "steps": self.steps,
            "seconds": self.seconds,
            "waiting": self.waiting,
        }

    def load(self, state: Mapping[str, Any], rank: int, processes: int) -> None:
        """Continue a saved window; another number of processes shares its loss equally."""
        losses = state["loss"]
        self.loss.copy_(losses[rank] if len(losses) == processes else losses.mean())
        self.grad_norm.copy_(state["grad_norm"])
        self.steps, self.seconds = state["steps"], state["seconds"]
        self.waiting = state["waiting"]


def memory_gb(device: torch.device) -> float:
    """Peak memory of a CUDA device, else the memory this process holds now (GB = 1e9 bytes)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    return psutil.Process().memory_info().rss / 1e9
