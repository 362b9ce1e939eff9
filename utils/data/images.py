"""Image folders: which images, in which order, as which pixels.

Sample ids are positions in `list_images(folder)`; everything that is computed from a folder
(latents, embeddings, statistics) uses this order. A folder may be an archive, see archive_files.py.
"""

import io
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from utils.base.errors import UserError
from utils.base.read_ahead import read_ahead
from utils.data.archive_files import list_files, read_bytes, relative_name

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}

# What such files are found to hold. Pillow knows others that it gives to programs (EPS).
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
LONGEST = 16  # times the short side: the ends of a longer strip are cut off before it is scaled


class UnreadableImage(UserError):
    """An image file that cannot be decoded."""


def list_images(folder: str | Path) -> list[Path]:
    """All jpg, jpeg, png and webp files below `folder`, hidden ones aside, in natural order.

    Numbers inside the relative path count as numbers (`2.jpg` before `10.jpg`); if every stem is an
    integer, those integers alone decide. Raises a UserError if there is no folder or no image.
    """
    found = list_files(folder, SUFFIXES, "image")
    if not found:
        raise UserError(
            f"{folder}: no images in this folder (jpg, jpeg, png or webp, at any depth)"
        )
    names = sorted(found, key=_natural)
    paths = [found[name] for name in names]
    if all(re.fullmatch("[0-9]+", path.stem) for path in paths):
        paths.sort(key=lambda path: int(path.stem))
    return paths


def _natural(text: str) -> tuple[list[str | int], str]:
    """Sort key: text and numbers in turn; the text itself tells `1` from `01`."""
    parts = re.split("([0-9]+)", text)
    return [int(p) if i % 2 else p for i, p in enumerate(parts)], text


def sample_names(paths: Iterable[Path], folder: str | Path) -> list[str]:
    """Names that identify samples: paths relative to `folder`, without suffix."""
    return [str(PurePosixPath(relative_name(path, folder)).with_suffix("")) for path in paths]


def load_image(path: str | Path, at_least: int | None = None) -> Image.Image:
    """Decode a file as upright 8-bit RGB, whatever it holds; transparent pixels lie on white.

    Of an animated one the first frame counts.

    at_least: a JPEG may be decoded at a half, a quarter or an eighth of its size, as long as both
    sides have so many pixels.
    Raises UnreadableImage (a UserError) with the path if the file is missing or broken.
    """
    with opened_image(path) as image:
        if at_least:
            image.draft(None, (at_least, at_least))
        image.load()
        return _to_rgb(ImageOps.exif_transpose(image))


@contextmanager
def opened_image(path: str | Path) -> Iterator[Image.Image]:
    """An image file on disk or in an archive; what is wrong with it becomes an UnreadableImage."""
    try:
        with Image.open(io.BytesIO(read_bytes(Path(path))), formats=FORMATS) as image:
            yield image
            return
    except UnidentifiedImageError as error:
        reason, cause = "of no known format", error
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        reason, cause = " ".join(str(error).split()) or type(error).__name__, error
    raise UnreadableImage(f"{path}: unreadable image ({reason}); repair or remove it") from cause


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F" or image.mode.startswith("I"):
        # Pillow clips 16-bit grey to 255 where it should scale it.
        image = Image.fromarray((np.asarray(image).clip(0, 65535) / 257 + 0.5).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def center_crop(image: Image.Image, size: int) -> Image.Image:
    """Scale the short side to `size` pixels and cut out the middle square, as ADM does.

    Halved with a box filter while the short side is at least twice `size`, then bicubic
    (Dhariwal & Nichol 2021, guided-diffusion). Only strips of over 16 to 1 differ: scaled whole,
    one of 20,000 x 10 pixels would take a gigabyte.
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
    """Decoded and cropped image file, (size, size, 3) uint8.

    draft: decode a JPEG at the smallest size that has twice as many pixels a side as are wanted.
    """
    return np.asarray(center_crop(load_image(path, 2 * size if draft else None), size))


def find_unreadable(paths: Sequence[Path], workers: int = 2) -> Iterator[UnreadableImage | None]:
    """Decode every image; yields for each, in order, None or what is wrong with it."""

    def check(path: Path) -> UnreadableImage | None:
        try:
            load_image(path)
        except UnreadableImage as error:
            return error
        return None

    return read_ahead(check, paths, workers, 8 * workers)
