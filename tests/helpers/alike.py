"""The bound within which images of another batch are equal; docs/use.md states it."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

Images = torch.Tensor | np.ndarray | Image.Image | Sequence[Image.Image]


def assert_alike(images: Images, expected: Images) -> None:
    """Assert that float32 images differ by at most 1 of 255, in a thousandth of their values."""
    difference = np.abs(_as_array(images) - _as_array(expected))
    assert difference.max() <= 1
    assert (difference > 0).mean() < 1e-3


def _as_array(images: Images) -> np.ndarray:
    several = [images] if isinstance(images, Image.Image) else images
    return np.stack([np.asarray(image) for image in several]).astype(int)
