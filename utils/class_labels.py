"""Class labels in the layout of MaskDiT's published ImageNet databases, as one-hot conditions.

Beside the latents `z-{i}`, which are moments before scaling, stands the class `y-{i}` of each image
in decimal digits; so does `length`. External features are `feat-{i}`, raw float32, with the same
labels. The second half of such a database may repeat the first with mirrored images.
"""

from pathlib import Path

import lmdb
import numpy as np

from utils.errors import UserError


def stored_length(value: bytes) -> int:
    """`length` as eight big-endian bytes or in decimal digits."""
    return int(value) if value.isdigit() else int.from_bytes(value, "big")


def read_labels(txn: lmdb.Transaction, length: int, path: Path) -> np.ndarray | None:
    """Classes (length,) int64, or None if there are none; without those of mirrored images.

    Raises a UserError naming a label that is missing or no number.
    """
    if txn.get(b"y-0") is None:
        return None
    stored = [txn.get(b"y-%d" % i, b"") for i in range(length)]
    if damaged := [i for i, value in enumerate(stored) if not value.isdigit()]:
        raise UserError(
            f"{path}: label y-{damaged[0]} is missing or damaged; delete the database and make it "
            "again"
        )
    labels = np.array(stored).astype(np.int64)
    first, second = np.array_split(labels, 2)
    return first if np.array_equal(first, second) else labels


def one_hot(labels: np.ndarray, classes: int) -> np.ndarray:
    """(B,) integers below `classes` -> (B, classes) float32."""
    return (labels[:, None] == np.arange(classes)).astype(np.float32)
