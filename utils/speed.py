"""What makes training and sampling faster without changing their results."""

from __future__ import annotations

import ctypes
import sys
from typing import Literal

import torch

from models.edm import EDMPrecond
from models.maskdit import MaskDiT
from utils.config import Config
from utils.errors import UserError, note

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


def compile_for_sampling(denoiser: EDMPrecond, config: Config, device: torch.device) -> None:
    """As `sampling.compile` says; for batches of any size."""
    wish = config.sampling.compile
    for line in compile_if(wish, "sampling.compile", denoiser.model, device, varying_tokens=True):
        note(line)


def compile_if(
    wish: bool | Literal["auto"],
    key: str,
    model: MaskDiT,
    device: torch.device,
    *,
    varying_tokens: bool = False,
) -> list[str]:
    """Compile a network's blocks if the config's `key` says so; returns what there is to tell.

    Raises UserError if it says true, not auto, and nothing can be compiled here.
    """
    if not wish:
        return []
    if fault := compiler_fault(device):
        if wish is True:
            raise UserError(f"{key}: {fault}; set it to auto or false")
        return [f"{key}: not compiled, as {fault}"]
    compile_blocks(model, varying_tokens=varying_tokens)
    return []


def compile_blocks(model: MaskDiT, *, varying_tokens: bool = False) -> None:
    """Compile each block in place; blocks of one width share their code.

    `varying_tokens`: one program for any number of tokens and images, as mask schedules and
        sampling need it.
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
