"""Image folders: their images in order, with names and pixels.

A sample's index is its position in `list_images(folder)`. Everything that is computed from a folder
(latents, embeddings, statistics) uses this order. A folder may be an archive, see archive_files.py.
"""

import importlib
import importlib.util
import io
import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError, features

from utils.base.errors import UserError, one_line
from utils.base.read_ahead import read_ahead
from utils.data.archive_files import list_files, read_bytes
from utils.data.folder_files import natural
from utils.data.image_metadata import ORIENTATION, orientation_of, take_apart
from utils.data.image_pixels import to_rgb

# Suffixes of files that count as images, by the contents that are decoded, whatever the suffix.
# Pillow starts programs for some other contents (EPS).
SUFFIXES_OF = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),
    "PNG": (".png", ".apng"),
    "WEBP": (".webp",),
    "TIFF": (".tif", ".tiff"),
    "GIF": (".gif",),
    "BMP": (".bmp", ".dib"),
    "AVIF": (".avif",),
    "JPEG2000": (".jp2", ".j2k", ".jpx", ".jpf", ".j2c"),
    "HEIF": (".heic", ".heif"),
}
SUFFIXES = {suffix for suffixes in SUFFIXES_OF.values() for suffix in suffixes}
CODECS = {"WEBP": "webp", "AVIF": "avif", "JPEG2000": "jpg_2000"}  # that Pillow may lack
MOST_PIXELS = 500_000_000  # of an image: some 2 GB while it is decoded
UPRIGHT = {  # by EXIF's orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
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
    """List all images below `folder` in natural order, by their suffixes.

    Numbers inside the relative path count as numbers (`2.jpg` before `10.jpg`); if every stem is an
    integer, those integers alone decide. A note says what was left out, see `list_files`. Raises a
    UserError if there is no folder or no image.
    """
    suffixes = {suffix for form in _formats() for suffix in SUFFIXES_OF[form]}
    found = list_files(folder, suffixes, "image", beside={".txt"})
    if not found:
        raise UserError(
            f"{folder}: no images in this folder (jpg, png, webp, tiff, avif, gif, bmp, jp2, "
            "at any depth)"
        )
    samples = [
        Sample(str(PurePosixPath(file).with_suffix("")), found[file])
        for file in sorted(found, key=natural)
    ]
    if all(re.fullmatch("[0-9]+", sample.path.stem) for sample in samples):
        samples.sort(key=lambda sample: int(sample.path.stem))
    return samples


@cache
def _formats() -> tuple[str, ...]:
    """Return the formats that are decoded here: HEIF where its package is installed."""
    if importlib.util.find_spec("pillow_heif"):
        importlib.import_module("pillow_heif").register_heif_opener()
    Image.init()
    registered = (form for form in SUFFIXES_OF if form in Image.OPEN)
    return tuple(form for form in registered if form not in CODECS or features.check(CODECS[form]))


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
    """Decode an opened image as upright 8-bit RGB; raise whatever Pillow raises, and ValueError."""
    image.load()
    orientation = image.info.get("orientation") or orientation_of(image.info)
    if orientation is None:  # of an image that another program opened or changed
        with suppress(Exception):
            orientation = image.getexif().get(ORIENTATION)
    upright = to_rgb(image)
    transpose = UPRIGHT.get(orientation) if isinstance(orientation, int) else None
    return upright if transpose is None else upright.transpose(transpose)


@contextmanager
def opened_image(path: str | Path, content: bytes | None = None) -> Iterator[Image.Image]:
    """Open an image file, on disk or in an archive.

    content: what the file holds, if it is not to be read; `path` is then its name in messages.

    Raise UnreadableImage if it is missing or broken, whatever the exception that Pillow raises.
    """
    try:
        pixels, found = take_apart(read_bytes(Path(path)) if content is None else content)
        with _without_limits, Image.open(io.BytesIO(pixels), formats=_formats()) as image:
            image.info.update(found)
            if image.width * image.height > MOST_PIXELS:
                raise ValueError(
                    f"{image.width} x {image.height} pixels are over {MOST_PIXELS / 1e6:.0f} "
                    "million: make it smaller"
                )
            yield image
    except UserError:
        raise
    except FileNotFoundError as error:
        raise UnreadableImage(f"{path}: there is no image of this name; check the path") from error
    except IsADirectoryError as error:
        raise UnreadableImage(f"{path}: is a folder; name an image in it") from error
    except Exception as error:  # Pillow's readers raise exceptions of any type
        is_unknown = isinstance(error, UnidentifiedImageError)
        reason = "of no known format" if is_unknown else one_line(error)
        message = f"{path}: unreadable image ({reason}); repair or remove it"
        raise UnreadableImage(message) from error


class _WithoutLimits:
    """Lifts Pillow's limit of pixels, one for the whole process, while an image is read here."""

    def __init__(self) -> None:
        self._lock, self._readers, self._limit = threading.Lock(), 0, Image.MAX_IMAGE_PIXELS

    def __enter__(self) -> None:
        with self._lock:
            if not self._readers:
                self._limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
            self._readers += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._readers -= 1
            if not self._readers:
                Image.MAX_IMAGE_PIXELS = self._limit


_without_limits = _WithoutLimits()


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


def to_uint8_array(path: str | Path, size: int, draft: bool = False) -> np.ndarray:
    """Decode and crop an image file to (size, size, 3) uint8; raise UnreadableImage.

    draft: decode a JPEG at the smallest size whose sides are at least twice `size`.
    """
    return np.asarray(center_crop(load_image(path, 2 * size if draft else None), size))


def find_unreadable(paths: Sequence[Path], workers: int = 2) -> Iterator[UnreadableImage | None]:
    """Decode every image in `workers` threads; yield its error, or None, for each in order."""

    def check(path: Path) -> UnreadableImage | None:
        try:
            load_image(path)
        except UnreadableImage as error:
            return error
        return None

    return read_ahead(check, paths, workers, 8 * workers)
