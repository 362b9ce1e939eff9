"""Compile a network without changing its results."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Literal

import torch

from models.backbone import Backbone
from models.edm import EDMPrecond
from utils.base.errors import UserError, note
from utils.config.sampling_sections import Sampling


def compile_for_sampling(denoiser: EDMPrecond, sampling: Sampling, device: torch.device) -> None:
    """Compile a denoiser with dynamic shapes if `sampling.compile` asks for it."""
    wish = sampling.compile
    for line in compile_if(wish, "sampling.compile", denoiser.model, device, varying_tokens=True):
        note(line)


def compile_if(
    wish: bool | Literal["auto"],
    key: str,
    model: Backbone,
    device: torch.device,
    *,
    varying_tokens: bool = False,
) -> list[str]:
    """Compile a network's blocks if the config asks for it; return messages for the user.

    wish: the value of the config's `key`; 'auto' compiles if there is a working compiler.
    varying_tokens: see `compile_blocks`.
    Raises UserError if `wish` is true and there is no working compiler.
    """
    if not wish:
        return []
    if fault := compiler_fault(device):
        if wish is True:
            raise UserError(f"{key}: {fault}; set it to auto or false")
        return [f"{key}: not compiled, as {fault}"]
    compile_blocks(model, varying_tokens=varying_tokens)
    return []


def compile_blocks(model: Backbone, *, varying_tokens: bool = False) -> None:
    """Compile each block in place; blocks of one width are compiled once.

    varying_tokens: compile with dynamic shapes, for any number of tokens and images, as mask
        schedules and sampling need it.
    """
    for block in model.all_blocks():
        block.compile(dynamic=varying_tokens)


def compiler_fault(device: torch.device) -> str | None:
    """Return the reason why torch.compile fails on `device`, or None; tested by compiling a sum.

    If only an empty cache helps, that of the user is damaged: this process goes on with another.
    """
    from torch._inductor.runtime.runtime_utils import cache_dir  # only runs that compile need it

    fault = _fault_of_a_sum(device)
    damaged = Path(cache_dir())
    if fault is None or not damaged.is_dir() or not any(damaged.iterdir()):
        return fault
    before = os.environ.get("TORCHINDUCTOR_CACHE_DIR")
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = fresh = tempfile.mkdtemp(prefix="torchinductor_")
    torch.compiler.reset()
    if _fault_of_a_sum(device) is None:
        note(f"the cache of torch.compile is damaged: rm -r {damaged}; this run uses {fresh}")
        return None
    shutil.rmtree(fresh, ignore_errors=True)
    if before is None:
        del os.environ["TORCHINDUCTOR_CACHE_DIR"]
    else:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = before
    return fault


def _fault_of_a_sum(device: torch.device) -> str | None:
    try:
        torch.compile(torch.add)(torch.zeros(8, device=device), 1)
    except (RuntimeError, OSError, ImportError, SyntaxError) as error:
        lines = str(error).strip().splitlines()
        return f"there is no working compiler ({lines[0] if lines else type(error).__name__})"
    return None
