"""Several processes: joining them, sharing a batch, agreeing, stopping."""

from __future__ import annotations

import contextlib
import datetime
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType

import torch
import torch.distributed
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs

from models.batch_random import RankSlice
from utils.base.errors import LOST_PROCESS, UserError, note
from utils.base.launch import join_processes, stop_signals
from utils.config.schema import Config
from utils.training.schedules import always_masked
from utils.training.sharding import wants_shards
from utils.training.shards import put_together
from utils.training.speed import best_amp

# Words in the errors of gloo, which have no type of their own.
SIGNS_OF_LOSS = (
    "closed by peer",
    "Connection reset",
    "Connection refused",
    "Broken pipe",
    "Timed out",
)


class Processes:
    """The processes of a training: device, slice of the batch, and agreement among them.

    They agree over the CPU (gloo), so that nothing waits for the device. One process agrees alone.
    """

    def __init__(self, config: Config) -> None:
        """Join the processes. Raises UserError if batch, amp or optimizer do not go with them."""
        options = config.train
        self.amp = best_amp(options.amp)
        self.sharded = wants_shards(options, self.amp)
        self.accelerator = start_accelerator(self.amp, options.grad_accum, always_masked(config))
        self.device: torch.device = self.accelerator.device
        rank, self.count = self.accelerator.process_index, self.accelerator.num_processes
        images = images_per_forward(options.batchsize, self.count, options.grad_accum)
        self.rank_slice = RankSlice(rank * images, images, self.count * images)
        self._group: torch.distributed.ProcessGroup | None = None
        if torch.distributed.is_initialized():
            # Waits for work that one process does alone, such as a grid of samples.
            patience = datetime.timedelta(hours=6)
            group = torch.distributed.new_group(backend="gloo", timeout=patience)
            assert isinstance(group, torch.distributed.ProcessGroup)
            self._group = group
        if self.device.type == "cuda":
            allow_tf32(options.tf32)

    def highest(self, value: int) -> int:
        """Return the highest of all processes' values; all processes call this."""
        if self._group is None:
            return value
        values = torch.tensor(value)
        torch.distributed.all_reduce(values, torch.distributed.ReduceOp.MAX, self._group)
        return int(values)

    def __str__(self) -> str:
        accumulated = self.accelerator.gradient_accumulation_steps
        sharded = ", sharded" if self.sharded else ""
        return (
            f"{self.count} process(es) x {accumulated} x {self.rank_slice.count}; "
            f"{self.device.type}, amp {self.amp}{sharded}"
        )

    def wait(self) -> None:
        """Return when all processes have called this."""
        self.highest(0)


def start_accelerator(amp: str, grad_accum: int, all_weights_used: bool) -> Accelerator:
    """Join the processes. Raises UserError if the device cannot do `amp`.

    amp: 'bf16', 'fp16' or 'no'. all_weights_used: every step has a gradient for each weight, which
        spares several processes a search.
    """
    join_processes()
    wrapper = DistributedDataParallelKwargs(find_unused_parameters=not all_weights_used)
    try:
        return Accelerator(
            mixed_precision=amp,
            gradient_accumulation_steps=grad_accum,
            kwargs_handlers=[wrapper],
            # Without a device, accelerate joins the processes only if `cpu` is set.
            cpu=not torch.accelerator.is_available(),
        )
    except ValueError as error:
        raise UserError(f"train.amp: {amp}: {error}; set train.amp=bf16 or no") from error


def images_per_forward(batchsize: int, processes: int, grad_accum: int) -> int:
    """Return how many images of the global batch a process takes in one forward pass.

    Raises UserError if the processes cannot divide the batch equally.
    """
    images, rest = divmod(batchsize, processes * grad_accum)
    if rest or images < 1:
        raise UserError(
            f"train.batchsize: {batchsize} images cannot be shared equally by {processes} "
            f"process(es) x {grad_accum} accumulated step(s); use a multiple of "
            f"{processes * grad_accum}"
        )
    return images


def allow_tf32(allowed: bool) -> None:
    """Set whether CUDA devices may multiply float32 with 10 bits of precision."""
    torch.set_float32_matmul_precision("high" if allowed else "highest")
    torch.backends.cudnn.allow_tf32 = allowed


def clip_gradients(
    accelerator: Accelerator, parameters: list[torch.nn.Parameter], limit: float | None
) -> torch.Tensor:
    """Scale the gradients to a norm of at most `limit`, if there is one; return their norm, ().

    The norm is that of before, over the gradients of all processes.
    """
    if limit is None:  # spares a pass over the gradients
        accelerator.unscale_gradients()
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    else:
        norm = accelerator.clip_grad_norm_(parameters, limit)
    return put_together(norm)


class StopSignal:
    """Memory of a signal that asks for the end: the training finishes its step and saves.

    A second SIGINT interrupts at once.
    """

    def __init__(self) -> None:
        self.received = 0
        for number in stop_signals():
            signal.signal(number, self._remember)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if self.received == number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = number
        with contextlib.suppress(RuntimeError):  # the signal came in the middle of another print
            note(f"{signal.Signals(number).name}: the step in hand is finished and saved")


class Watchdog:
    """Guard against processes that no longer answer: ends this one if a step takes far too long.

    A stopped process or a dead machine sends nothing, and the others would wait for ever. The
    watchdog does nothing in a process that is alone.
    """

    def __init__(self, limit: float) -> None:
        """limit: seconds that a step may take, or ten times the longest step, if that is more."""
        self._limit = limit
        self._begun: float | None = None
        self._longest = 0.0
        self._thread: threading.Thread | None = None

    def step_begins(self) -> None:
        """Start the clock."""
        self._begun = time.monotonic()

    def step_ends(self) -> None:
        """Stop the clock until the next step begins."""
        if self._thread is not None and self._begun is not None:
            self._longest = max(self._longest, time.monotonic() - self._begun)
        elif torch.distributed.is_initialized():  # not before: the first step may compile
            self._thread = threading.Thread(target=self._watch, daemon=True, name="watchdog")
            self._thread.start()
        self._begun = None

    def _watch(self) -> None:
        while True:
            time.sleep(1)
            begun, limit = self._begun, max(self._limit, 10 * self._longest)
            if begun is not None and time.monotonic() - begun > limit:
                fault = RuntimeError(f"the step has not ended in {limit:.0f} s")
                report_lost_process(fault)
                os._exit(LOST_PROCESS)


@contextlib.contextmanager
def ending_if_a_process_is_lost() -> Iterator[None]:
    """End this process with the cause and code LOST_PROCESS if it cannot reach another one."""
    try:
        yield
    except RuntimeError as error:
        is_distributed = isinstance(error, torch.distributed.DistError)
        if not is_distributed and not any(sign in str(error) for sign in SIGNS_OF_LOSS):
            raise
        report_lost_process(error)
        sys.exit(LOST_PROCESS)


def report_lost_process(error: RuntimeError) -> None:
    """Print on stderr that another process was lost; the process that notices it calls this."""
    print(
        f"error: process {os.environ.get('RANK', 0)}: another process is gone or does not answer "
        f"({str(error).splitlines()[0]}). Start the same command again: it goes on from the last "
        "checkpoint",
        file=sys.stderr,
        flush=True,
    )
