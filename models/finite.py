"""NaN and infinite numbers."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor


def is_finite(numbers: Tensor | np.ndarray) -> bool:
    """Return True if no number is NaN or infinite; waits for the numbers' device."""
    if isinstance(numbers, np.ndarray):
        return bool(np.isfinite(numbers).all())
    if not numbers.is_floating_point() or not numbers.numel():
        return True
    # One pass without temporaries: both ends are NaN if any number is.
    return bool(torch.stack(torch.aminmax(numbers.detach())).isfinite().all())


def first_not_finite(numbers: Mapping[str, Tensor | np.ndarray]) -> str | None:
    """Return the name of the first entry that holds NaN or infinite numbers, or None."""
    return next((name for name, value in numbers.items() if not is_finite(value)), None)
