"""Comparison of images by their pixels."""

import numpy as np


def pixels(images) -> np.ndarray:
    return np.stack([np.asarray(image) for image in images])


def assert_equal_images(a, b) -> None:
    np.testing.assert_array_equal(pixels(a), pixels(b))
