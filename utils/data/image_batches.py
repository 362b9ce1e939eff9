"""Images to be judged: a folder or archive of them, or an npz of ADM's form (`arr_0`, N H W 3)."""

from __future__ import annotations

import itertools
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.lib import format as npy
from PIL import Image
from torch import Tensor

from utils.base.errors import UserError
from utils.base.read_ahead import read_ahead
from utils.data.images import center_crop, load_image, to_uint8_array

Batch = tuple[list[int], Tensor | list[Tensor]]  # indices; uint8 (B, 3, H, W), or each (3, H, W)


class NpzImages:
    """The images in an npz, read one after the other so that memory does not grow with them."""

    def __init__(self, path: Path) -> None:
        """Raises UserError if there are none in it."""
        self.path = path
        try:
            with zipfile.ZipFile(path) as archive, archive.open("arr_0.npy") as file:
                shape, _, dtype = self._header(file)
                self.checksum = f"npz-{archive.getinfo('arr_0.npy').CRC:08x}"
                self.has_statistics = "mu.npy" in archive.namelist()
        except (OSError, KeyError, ValueError, zipfile.BadZipFile) as fault:
            raise UserError(f"{path}: not an npz of images ({fault})") from fault
        if len(shape) != 4 or shape[-1] != 3 or dtype != np.uint8:
            raise UserError(f"{path}: arr_0 is {dtype} {shape}, images are uint8 (N, H, W, 3)")
        self.shape = shape
        self.side = shape[1] if shape[1] == shape[2] else 0  # pixels; 0 = not square

    @staticmethod
    def _header(file) -> tuple[tuple[int, ...], bool, np.dtype]:
        major, _ = npy.read_magic(file)
        return npy.read_array_header_1_0(file) if major == 1 else npy.read_array_header_2_0(file)

    def __len__(self) -> int:
        return self.shape[0]

    def __iter__(self) -> Iterator[np.ndarray]:
        size = int(np.prod(self.shape[1:]))
        try:
            with zipfile.ZipFile(self.path) as archive, archive.open("arr_0.npy") as file:
                self._header(file)
                for _ in range(len(self)):
                    yield np.frombuffer(file.read(size), np.uint8).reshape(self.shape[1:])
        except (OSError, ValueError, zipfile.BadZipFile) as fault:
            raise UserError(f"{self.path}: arr_0 is damaged ({fault})") from fault


def image_batches(
    source: Sequence[Path] | NpzImages,
    size: int | None,
    batch_size: int,
    workers: int = 2,
    positions: Sequence[int] | None = None,
    enlarge: bool = True,
) -> Iterator[Batch]:
    """Images with their indices, in batches.

    Args:
        source: image files, or the images of an npz.
        size: side of the centre crops; None = every image as it is.
        workers: threads that decode files, at most two batches ahead.
        positions: ascending indices of the images that are wanted; None = all.
        enlarge: images smaller than `size` are enlarged.

    Raises UserError at the first image that cannot be read or, unless `enlarge`, is too small.
    """
    indices = iter(range(len(source)) if positions is None else positions)
    if isinstance(source, NpzImages):
        wanted = range(len(source)) if positions is None else set(positions)
        chosen = (x for i, x in enumerate(source) if i in wanted)
        pixels = (_cropped(Image.fromarray(x), size, enlarge, source.path) for x in chosen)
    else:
        chosen = source if positions is None else (source[i] for i in positions)
        pixels = read_ahead(
            lambda path: _cropped(load_image(path), size, enlarge, path),
            chosen,
            workers,
            2 * batch_size,
        )
    images = (torch.from_numpy(x).permute(2, 0, 1) for x in pixels)
    while batch := list(itertools.islice(images, batch_size)):
        same = len({image.shape for image in batch}) == 1
        yield list(itertools.islice(indices, len(batch))), torch.stack(batch) if same else batch


def _cropped(image: Image.Image, size: int | None, enlarge: bool, path: Path) -> np.ndarray:
    if size is not None:
        if min(image.size) < size and not enlarge:
            raise UserError(
                f"{path}: is {image.width}x{image.height} pixels, too small for figures at {size}; "
                "enlarged images would be judged by their blur"
            )
        image = center_crop(image, size)
    return np.array(image)


def iterate_batches(
    paths: Sequence[Path], size: int, batch_size: int, workers: int = 2, draft: bool = False
) -> Iterator[torch.Tensor]:
    """Yield the images in order as (B, 3, size, size) uint8 batches; the last may be smaller.

    `workers` threads decode at most two batches ahead. `draft`: see to_uint8_array. Raises
    UnreadableImage at the first broken file, after the complete batches before it.
    """
    # Pillow decodes outside the interpreter lock.
    images = read_ahead(
        lambda path: to_uint8_array(path, size, draft), paths, workers, 2 * batch_size
    )
    while batch := list(itertools.islice(images, batch_size)):
        yield torch.from_numpy(np.stack(batch)).permute(0, 3, 1, 2).contiguous()
