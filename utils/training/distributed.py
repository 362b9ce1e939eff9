"""Several processes: starting them, sharing a batch among them, agreeing, stopping."""

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
from torch.distributed.tensor import DTensor

from utils.base.errors import LOST_PROCESS, UserError, note

# What gloo's errors, which have no type of their own, say.
SIGNS_OF_LOSS = (
    "closed by peer",
    "Connection reset",
    "Connection refused",
    "Broken pipe",
    "Timed out",
)


def start_accelerator(amp: str, grad_accum: int, all_weights_used: bool) -> Accelerator:
    """The processes' common ground. Raises UserError if the device cannot do `amp`.

    `amp`: 'bf16', 'fp16' or 'no'. `all_weights_used`: every step has a gradient for each weight,
    which spares several processes a search.
    """
    _join_after_restart()
    wrapper = DistributedDataParallelKwargs(find_unused_parameters=not all_weights_used)
    try:
        return Accelerator(
            mixed_precision=amp,
            gradient_accumulation_steps=grad_accum,
            kwargs_handlers=[wrapper],
            # Without a device, accelerate joins the processes only if told to use the CPU.
            cpu=not torch.accelerator.is_available(),
        )
    except ValueError as error:
        raise UserError(f"train.amp: {amp}: {error}") from error


def _join_after_restart() -> None:
    """Meet the other processes under names of this restart's own, if torchrun has restarted them.

    torchrun keeps one store for all restarts, in which the addresses of dead processes still stand.
    """
    restart = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))
    if restart == 0 or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return
    store, rank, processes = next(torch.distributed.rendezvous("env://"))
    store = torch.distributed.PrefixStore(f"restart_{restart}", store)
    torch.distributed.init_process_group(store=store, rank=rank, world_size=processes)


def images_per_forward(batchsize: int, processes: int, grad_accum: int) -> int:
    """Share of the global batch that a process takes in one forward pass."""
    share, rest = divmod(batchsize, processes * grad_accum)
    if rest or share < 1:
        raise UserError(
            f"train.batchsize: {batchsize} images cannot be shared equally by {processes} "
            f"process(es) x {grad_accum} accumulated step(s); use a multiple of "
            f"{processes * grad_accum}"
        )
    return share


def allow_tf32(allowed: bool) -> None:
    """Whether CUDA devices may multiply float32 with 10 bits of precision."""
    torch.set_float32_matmul_precision("high" if allowed else "highest")
    torch.backends.cudnn.allow_tf32 = allowed


def clip(
    accelerator: Accelerator, parameters: list[torch.nn.Parameter], limit: float | None
) -> torch.Tensor:
    """Scale the gradients to a norm of at most `limit`, if any; returns what it was, (), of all."""
    if limit is None:  # spares a pass over the gradients
        accelerator.unscale_gradients()
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    else:
        norm = accelerator.clip_grad_norm_(parameters, limit)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


class Team:
    """What the processes of a training agree on beside the gradients; one process agrees alone.

    Talks over the CPU (gloo), so that nothing waits for the device.
    """

    def __init__(self) -> None:
        self._group = None
        if torch.distributed.is_initialized():
            # Waits for what one process does while the others have nothing to do, e.g. drawing.
            patience = datetime.timedelta(hours=6)
            self._group = torch.distributed.new_group(backend="gloo", timeout=patience)

    def highest(self, value: int) -> int:
        """The highest of all processes' values; called by all."""
        if self._group is None:
            return value
        values = torch.tensor(value)
        torch.distributed.all_reduce(values, torch.distributed.ReduceOp.MAX, self._group)
        return int(values)

    def wait(self) -> None:
        """Return when all processes have called this."""
        self.highest(0)


class StopSignal:
    """Remembers SIGTERM, SIGINT or SIGUSR1, so that the step in hand can be finished and saved.

    A second SIGINT interrupts at once.
    """

    def __init__(self) -> None:
        self.received = 0
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            signal.signal(number, self._remember)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if self.received == number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = number
        note(f"{signal.Signals(number).name}: the step in hand is finished and saved")


class Watchdog:
    """Ends this process if a step takes far too long, as another process does not answer.

    A stopped process or a dead machine says nothing, and the others would wait for it for ever.
    Does nothing in a process that is alone.
    """

    def __init__(self, limit: float) -> None:
        """`limit`: seconds that a step may take; or ten times the longest before, if more."""
        self._limit = limit
        self._begun: float | None = None
        self._longest = 0.0
        self._thread: threading.Thread | None = None

    def step_begins(self) -> None:
        """The clock runs."""
        self._begun = time.monotonic()

    def step_ends(self) -> None:
        """It stands still until the next step begins."""
        if self._thread is not None:
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
                tell_lost_process(fault)
                os._exit(LOST_PROCESS)


@contextlib.contextmanager
def ending_if_a_process_is_lost() -> Iterator[None]:
    """Ends this process with the cause and code LOST_PROCESS if talking to another one fails."""
    try:
        yield
    except RuntimeError as error:
        is_distributed = isinstance(error, torch.distributed.DistError)
        if not is_distributed and not any(sign in str(error) for sign in SIGNS_OF_LOSS):
            raise
        tell_lost_process(error)
        sys.exit(LOST_PROCESS)


def tell_lost_process(error: RuntimeError) -> None:
    """Say on stderr, on whichever process notices it, that another one was lost."""
    print(
        f"error: process {os.environ.get('RANK', 0)}: another process is gone or does not answer "
        f"({str(error).splitlines()[0]}). Start the same command again: it goes on from the last "
        "checkpoint",
        file=sys.stderr,
        flush=True,
    )
