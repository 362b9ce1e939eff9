"""Images in batches: from files, or from an npz in ADM's form (`arr_0`, (N, H, W, 3) uint8)."""

from __future__ import annotations

import itertools
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

import numpy as np
import torch
from numpy.lib import format as npy
from PIL import Image
from torch import Tensor

from utils.base.errors import UserError
from utils.base.read_ahead import read_ahead
from utils.data.images import center_crop, load_image
from utils.data.source_files import SourceFiles

Batch = tuple[list[int], Tensor | list[Tensor]]  # indices; uint8 (B, 3, H, W), or each (3, H, W)


class NpzImages:
    """The images in an npz, read one after the other: memory does not grow with their number."""

    def __init__(self, path: Path) -> None:
        """Read the header; raise a UserError if the file is not an npz of images."""
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
    def _header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
        """Read shape, memory order and type of an array, up to its first byte."""
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
    source: Sequence[Path] | SourceFiles | NpzImages,
    size: int | None,
    batch_size: int,
    workers: int = 2,
    positions: Sequence[int] | None = None,
    enlarge: bool = True,
    draft: bool = False,
) -> Iterator[Batch]:
    """Yield images with their indices, in batches.

    Args:
        source: image files, which SourceFiles records, or the images of an npz.
        size: side of the centre crops in pixels; None = every image whole.
        workers: threads that decode files, at most two batches ahead.
        positions: ascending indices of the wanted images; None = all.
        enlarge: enlarge images that are smaller than `size`.
        draft: decode JPEGs at the smallest size whose sides are at least twice `size`.

    Raises UserError at the first image that cannot be read or, unless `enlarge`, is too small.
    """
    pixels: Iterator[np.ndarray]
    indices = iter(range(len(source)) if positions is None else positions)
    if isinstance(source, NpzImages):
        wanted = range(len(source)) if positions is None else set(positions)
        arrays = (x for i, x in enumerate(source) if i in wanted)
        pixels = (_crop(Image.fromarray(x), size, enlarge, source.path) for x in arrays)
    else:
        files = source if isinstance(source, SourceFiles) else SourceFiles(source)

        def decode(index: int) -> np.ndarray:
            path, at_least = files.paths[index], 2 * size if draft and size else None
            image = load_image(path, at_least, files.read(index))
            files.square[index] = min(image.size) / max(image.size)
            return _crop(image, size, enlarge, path)

        # Threads suffice: Pillow decodes outside the interpreter lock.
        numbers = range(len(files)) if positions is None else positions
        pixels = read_ahead(decode, numbers, workers, 2 * batch_size)
    images = (torch.from_numpy(x).permute(2, 0, 1) for x in pixels)
    while batch := list(itertools.islice(images, batch_size)):
        same = len({image.shape for image in batch}) == 1
        yield list(itertools.islice(indices, len(batch))), torch.stack(batch) if same else batch


def _crop(image: Image.Image, size: int | None, enlarge: bool, path: Path) -> np.ndarray:
    """Crop an image to (size, size, 3) uint8, or keep it whole if `size` is None."""
    if size is not None:
        if min(image.size) < size and not enlarge:
            raise UserError(
                f"{path}: is {image.width}x{image.height} pixels, too small for metrics at {size}; "
                "their values would measure the blur of enlarging"
            )
        image = center_crop(image, size)
    return np.array(image)


def iterate_batches(
    files: Sequence[Path] | SourceFiles,
    size: int,
    batch_size: int,
    workers: int = 2,
    draft: bool = False,
) -> Iterator[Tensor]:
    """Yield crops of images in order as (B, 3, size, size) uint8; the last batch may be smaller.

    See `image_batches`.
    """
    for _, batch in image_batches(files, size, batch_size, workers, draft=draft):
        assert isinstance(batch, Tensor)  # all crops have one size
        yield batch
