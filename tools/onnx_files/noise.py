"""PyTorch's normal random numbers without PyTorch, so that a seed means the same picture."""

import math
from collections.abc import Sequence

import numpy as np


def randn(shape: Sequence[int], seed: int) -> np.ndarray:
    """Draw what `torch.randn` draws on a CPU from a new generator of this seed, up to rounding.

    The Mersenne Twister gives 24-bit fractions; Box & Muller 1958 makes normal numbers of them, of
    each eight and the next eight. Hence shape should have a multiple of 16 elements.
    Raises ValueError for seeds outside [0, 2^32).
    """
    bits = np.frombuffer(np.random.RandomState(seed).bytes(4 * math.prod(shape)), "<u4")
    u, v = ((bits & 0xFFFFFF) / 2**24).reshape(-1, 2, 8).transpose(1, 0, 2)
    waves = np.stack([np.cos(2 * np.pi * v), np.sin(2 * np.pi * v)], axis=1)
    return (np.sqrt(-2 * np.log(1 - u))[:, None] * waves).reshape(shape)
