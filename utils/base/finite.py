"""Finite or refused: the one check of numbers before they are written, and when they are read."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from models.finite import first_not_finite
from utils.base.errors import UserError

OVERFLOW = (
    "if encoders.precision is fp16, set it to bf16 or float32, as large values leave float16's "
    "range; otherwise the encoder's weights are damaged: copy them again"
)


def require_finite(
    numbers: Mapping[str, torch.Tensor | np.ndarray], where: object, remedy: str
) -> None:
    """Raise UserError if a number is NaN or infinite, with the name of the first such entry.

    where: what holds the numbers, for the message. remedy: what the user can do.
    Waits for the device of the numbers.
    """
    if (name := first_not_finite(numbers)) is not None:
        raise UserError(f"{where}: {name} holds NaN or infinite numbers; {remedy}")
