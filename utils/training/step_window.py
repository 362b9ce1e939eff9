"""Means of the steps between two log lines."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

import psutil
import torch

from utils.training.step_guard import Verdict

T = TypeVar("T")


class Window:
    """Sums over the steps since the last log line, equal in all processes.

    The sums stay on the device, so that adding a step does not wait for it. `seconds` and
    `waiting` (for data) are wall-clock time. `processor_seconds` are those of all threads of this
    process during the steps.
    """

    SUMS = ("loss", "grad_norm", "skipped", "spikes", "alignment", "aligned")

    def __init__(self, device: torch.device) -> None:
        self.sums = torch.zeros(len(self.SUMS), device=device)
        self.reset()

    def reset(self) -> None:
        """Start a new window."""
        self.sums.zero_()
        self.steps, self.seconds, self.waiting, self.processor_seconds = 0, 0.0, 0.0, 0.0

    def add(
        self,
        loss: torch.Tensor,
        grad_norm: torch.Tensor,
        verdict: Verdict,
        alignment: torch.Tensor | None = None,
    ) -> None:
        """Add a step; its losses and gradient norm count if it was a good one.

        alignment: its alignment loss; None = nothing was aligned.
        """
        good = verdict.good
        aligned = good if alignment is not None else torch.zeros_like(good)
        sums = (
            torch.where(good, loss, 0),
            torch.where(good, grad_norm, 0),
            ~good,
            verdict.spike,
            aligned if alignment is None else torch.where(good, alignment, 0),
            aligned,
        )
        self.sums += torch.stack([value.float() for value in sums])
        self.steps += 1

    def means(self) -> dict[str, float]:
        """Return losses and gradient norm per good step, and the counts of skips and spikes.

        Waits for the device.
        """
        loss, grad_norm, skipped, spikes, alignment, aligned = self.sums.tolist()
        good = self.steps - int(skipped)
        means = {"loss": loss / good, "grad_norm": grad_norm / good} if good else {}
        if aligned:
            means["alignment"] = alignment / aligned
        return {**means, "skipped": int(skipped), "spikes": int(spikes)}

    def begin(self) -> None:
        """Start the clocks of a step."""
        self._begun, self._processor_begun = time.perf_counter(), time.process_time()

    def end(self) -> None:
        """Add the step's time to `seconds` and `processor_seconds`."""
        self.seconds += time.perf_counter() - self._begun
        self.processor_seconds += time.process_time() - self._processor_begun

    def timed(self, batches: Iterator[T]) -> Iterator[T]:
        """Yield from endless `batches`, and add the time that each takes to `waiting`."""
        while True:
            asked = time.perf_counter()
            batch = next(batches)
            self.waiting += time.perf_counter() - asked
            yield batch

    def state(self) -> dict[str, Any]:
        """Return everything, for a checkpoint between two log lines."""
        return {
            "sums": self.sums.clone(),
            "steps": self.steps,
            "seconds": self.seconds,
            "waiting": self.waiting,
            "processor_seconds": self.processor_seconds,
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Continue a saved window; older checkpoints hold fewer sums, no processor seconds."""
        self.sums[: len(state["sums"])] = state["sums"]
        self.steps, self.seconds = state["steps"], state["seconds"]
        self.waiting = state["waiting"]
        self.processor_seconds = state.get("processor_seconds", 0.0)


def memory_gb(device: torch.device) -> float:
    """Return the peak memory of a CUDA device, or this process's memory now (GB = 1e9 bytes)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    return psutil.Process().memory_info().rss / 1e9
