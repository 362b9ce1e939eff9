"""Switches that make training faster without changing its results."""

from __future__ import annotations

import ctypes
import sys

import torch

from models.maskdit import MaskDiT
from utils.config.schema import Config
from utils.sampling.compile import compile_if

# Parameters of glibc's mallopt
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4


def speed_up(model: MaskDiT, config: Config, device: torch.device) -> list[str]:
    """Apply the speed switches of `train` to a network; returns what there is to tell.

    Names in the state dict stay as they are. Raises UserError if `compile` is true, not auto, and
    nothing can be compiled here.
    """
    options = config.train
    model.activation_checkpointing = options.activation_checkpointing
    if device.type == "cpu":
        keep_freed_memory()
    varying = config.model.mask_ratio_fn != "constant"
    return compile_if(options.compile, "train.compile", model, device, varying_tokens=varying)


def best_amp(wish: str) -> str:
    """`train.amp` -> 'bf16', 'fp16' or 'no'; auto is bf16 unless a GPU would only emulate it."""
    if wish != "auto":
        return wish
    emulated = torch.cuda.is_available() and not torch.cuda.is_bf16_supported(
        including_emulation=False
    )
    return "fp16" if emulated else "bf16"


def keep_freed_memory() -> None:
    """Let glibc keep freed memory for the next step, and not hand it back to the system.

    Else every large activation of every step is paid for by page faults, a fifth of its time.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
