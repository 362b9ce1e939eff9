"""Image folders: their images in order, with names and pixels.

A sample's index is its position in `list_images(folder)`. Everything that is computed from a folder
(latents, embeddings, statistics) uses this order. A folder may be an archive, see archive_files.py.
"""

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from utils.base.errors import UserError
from utils.base.read_ahead import read_ahead
from utils.data.archive_files import list_files, read_bytes

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff"}

# Contents that are decoded, whatever the suffix. Pillow starts programs for some others (EPS).
FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP")
LONGEST = 16  # times the short side: the ends of a longer strip are cut off before scaling


class UnreadableImage(UserError):
    """An image file that cannot be decoded."""


class Sample(NamedTuple):
    """An image of a folder, and the name that identifies it in databases."""

    name: str  # path below the folder (or below its shard), without suffix
    path: Path

    @property
    def file_name(self) -> str:
        """Return the name with the file's suffix."""
        return self.name + self.path.suffix


def list_images(folder: str | Path) -> list[Sample]:
    """List all jpg, jpeg, png, webp, tif and tiff files below `folder` in natural order.

    Hidden files are left out. Numbers inside the relative path count as numbers (`2.jpg` before
    `10.jpg`); if every stem is an integer, those integers alone decide. Raises a UserError if there
    is no folder or no image.
    """
    found = list_files(folder, SUFFIXES, "image")
    if not found:
        raise UserError(
            f"{folder}: no images in this folder (jpg, jpeg, png, webp, tif or tiff, at any depth)"
        )
    samples = [
        Sample(str(PurePosixPath(file).with_suffix("")), found[file])
        for file in sorted(found, key=_natural)
    ]
    if all(re.fullmatch("[0-9]+", sample.path.stem) for sample in samples):
        samples.sort(key=lambda sample: int(sample.path.stem))
    return samples


def _natural(text: str) -> tuple[list[str | int], str]:
    """Return a sort key: text and numbers in turn, then the text itself (`1` is not `01`)."""
    parts = re.split("([0-9]+)", text)
    return [int(p) if i % 2 else p for i, p in enumerate(parts)], text


def load_image(
    path: str | Path, at_least: int | None = None, content: bytes | None = None
) -> Image.Image:
    """Decode a file as upright 8-bit RGB, whatever it holds.

    Transparent pixels are laid on white. An animation is read as its first frame.

    at_least: decode a JPEG at a half, a quarter or an eighth of its size, as long as both sides
        keep this many pixels.
    content: what the file holds, if it is not to be read.

    Raises UnreadableImage (a UserError) with the path if the file is missing or broken.
    """
    with opened_image(path, content) as image:
        if at_least:
            image.draft(None, (at_least, at_least))
        return upright_rgb(image)


def upright_rgb(image: Image.Image) -> Image.Image:
    """Decode an opened image as upright 8-bit RGB; see `load_image`.

    Raises whatever Pillow raises for a damaged file, and ValueError for values without known range.
    """
    image.load()
    if image.format == "TIFF" and image.mode in ("F", "I"):
        raise ValueError("32-bit or signed grey has no known range: save it as 8 or 16 bits")
    return _to_rgb(ImageOps.exif_transpose(image))


@contextmanager
def opened_image(path: str | Path, content: bytes | None = None) -> Iterator[Image.Image]:
    """Open an image file, on disk or in an archive.

    content: what the file holds, if it is not to be read; `path` is then its name in messages.

    Raise UnreadableImage if it is missing or broken.
    """
    cause: Exception
    try:
        file = io.BytesIO(read_bytes(Path(path)) if content is None else content)
        with Image.open(file, formats=FORMATS) as image:
            yield image
            return
    except FileNotFoundError as error:
        raise UnreadableImage(f"{path}: there is no image of this name; check the path") from error
    except UnidentifiedImageError as error:
        reason, cause = "of no known format", error
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        reason, cause = " ".join(str(error).split()) or type(error).__name__, error
    raise UnreadableImage(f"{path}: unreadable image ({reason}); repair or remove it") from cause


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F" or image.mode.startswith("I"):
        # Pillow clips 16-bit grey at 255 where it should scale.
        image = Image.fromarray((np.asarray(image).clip(0, 65535) / 257 + 0.5).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def center_crop(image: Image.Image, size: int) -> Image.Image:
    """Scale the short side to `size` pixels and cut out the middle square, as ADM does.

    The image is halved with a box filter while its short side is at least twice `size`, then scaled
    bicubically (Dhariwal & Nichol 2021, guided-diffusion). Only strips longer than 16 to 1 differ
    from ADM, by cutting their ends first: 20,000 x 10 pixels, scaled whole, would take a gigabyte.
    """
    if max(image.size) > LONGEST * min(image.size):
        width, height = (min(side, LONGEST * min(image.size)) for side in image.size)
        left, top = (image.width - width) // 2, (image.height - height) // 2
        image = image.crop((left, top, left + width, top + height))
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    scaled = (round(image.width * scale), round(image.height * scale))
    image = image.resize(scaled, Image.Resampling.BICUBIC)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return image.crop((left, top, left + size, top + size))


def to_uint8_array(
    path: str | Path, size: int, draft: bool = False, content: bytes | None = None
) -> np.ndarray:
    """Decode and crop an image file to (size, size, 3) uint8.

    draft: decode a JPEG at the smallest size whose sides are at least twice `size`.
    content: what the file holds, if it is not to be read.

    Raises UnreadableImage if the file is missing or broken.
    """
    return np.asarray(center_crop(load_image(path, 2 * size if draft else None, content), size))


def find_unreadable(paths: Sequence[Path], workers: int = 2) -> Iterator[UnreadableImage | None]:
    """Decode every image in `workers` threads; yield its error, or None, for each in order."""

    def check(path: Path) -> UnreadableImage | None:
        try:
            load_image(path)
        except UnreadableImage as error:
            return error
        return None

    return read_ahead(check, paths, workers, 8 * workers)
