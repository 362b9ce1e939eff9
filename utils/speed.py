"""What makes a training step faster without changing its results."""

from __future__ import annotations

import ctypes
import sys

import torch

from models.maskdit import MaskDiT
from utils.config import Config
from utils.errors import UserError

# Parameters of glibc's mallopt
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4


def speed_up(model: MaskDiT, config: Config, device: torch.device) -> list[str]:
    """Apply the speed switches of `train` to a network; returns what there is to tell.

    Names in the state dict stay as they are. Raises UserError if `compile` is true, not auto, and
    nothing can be compiled here.
    """
    notes, options = [], config.train
    model.activation_checkpointing = options.activation_checkpointing
    if device.type == "cpu":
        keep_freed_memory()
    if options.compile:
        fault = compiler_fault(device)
        if fault is None:
            compile_blocks(model, varying_tokens=config.model.mask_ratio_fn != "constant")
        elif options.compile == "auto":
            notes.append(f"train.compile: not compiled, as {fault}")
        else:
            raise UserError(f"train.compile: {fault}; set it to auto or false")
    return notes


def compile_blocks(model: MaskDiT, *, varying_tokens: bool = False) -> None:
    """Compile each block in place; blocks of one width share their code.

    `varying_tokens`: one program for any number of tokens, as mask schedules need it.
    """
    for block in [*model.blocks, *getattr(model, "decoder_blocks", [])]:
        block.compile(dynamic=varying_tokens)


def compiler_fault(device: torch.device) -> str | None:
    """Why torch.compile does not work on `device`, or None; found by compiling a sum."""
    try:
        torch.compile(torch.add)(torch.zeros(8, device=device), 1)
    except (RuntimeError, OSError, ImportError) as error:
        lines = str(error).strip().splitlines()
        return f"there is no working compiler ({lines[0] if lines else type(error).__name__})"
    return None


def keep_freed_memory() -> None:
    """Let glibc keep freed memory for the next step, and not hand it back to the system.

    Else every large activation of every step is paid for by page faults, a fifth of its time.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
