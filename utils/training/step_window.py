"""Means of the steps between two log lines."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import psutil
import torch

from utils.training.step_guard import Verdict


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
