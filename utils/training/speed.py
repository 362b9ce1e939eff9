"""Switches that make training faster without changing its results."""

from __future__ import annotations

import ctypes
import sys

import torch

from models.backbone import Backbone
from utils.config.schema import Config
from utils.sampling.compile import compile_if

# Parameters of glibc's mallopt
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4


def speed_up(model: Backbone, config: Config, device: torch.device) -> list[str]:
    """Apply the speed switches of `train` to a network; return notes for the user.

    Names in the state dict do not change. Raises UserError if `compile` is true, not auto, and
    nothing can be compiled here.
    """
    options = config.train
    model.activation_checkpointing = options.activation_checkpointing
    if device.type == "cpu":
        keep_freed_memory()
    varying = config.model.mask_ratio_fn != "constant"
    return compile_if(options.compile, "train.compile", model, device, varying_tokens=varying)


def best_amp(wish: str) -> str:
    """Resolve `train.amp` to 'bf16', 'fp16' or 'no'; auto = bf16, unless a GPU would emulate it."""
    if wish != "auto":
        return wish
    emulated = torch.cuda.is_available() and not torch.cuda.is_bf16_supported(
        including_emulation=False
    )
    return "fp16" if emulated else "bf16"


def keep_freed_memory() -> None:
    """Let glibc keep freed memory for the next step, instead of returning it to the system.

    Page faults for the large activations would otherwise take a fifth of each step.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
