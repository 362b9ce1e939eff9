"""Image folders (which images, in which order, as which pixels), and how pictures are written.

Sample ids are positions in `list_images(folder)`; everything that is computed from a folder
(latents, embeddings, statistics) uses this order. A folder may be an archive, see utils/sources.py.
"""

import io
import itertools
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

import matplotlib
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont, ImageOps, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

from utils.errors import UserError, note
from utils.read_ahead import read_ahead
from utils.sources import list_files, read_bytes, relative_name

MIN_CELL = 160  # pixels; smaller pictures are enlarged in grids so that captions can be read
MAX_LINES = 6  # of a caption
MAX_ICONS = 3  # before a caption
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


def load_captions(
    image_paths: Sequence[Path],
    image_dir: str | Path,
    caption_dir: str | Path,
    *,
    all_images: bool = True,
) -> list[list[str]]:
    """The captions of each image: the lines of `<stem>.txt` at the same place below `caption_dir`.

    Raises a UserError if a file is missing, empty or no UTF-8 text. Caption files of none of the
    images are left unused, and this is said, unless there are more images than these.
    """
    found = list_files(caption_dir, {".txt"}, "caption")
    names = [f"{name}.txt" for name in sample_names(image_paths, image_dir)]
    if missing := [i for i, name in enumerate(names) if name not in found]:
        raise UserError(
            f"{caption_dir}: {_of(len(missing), len(names), 'images')} without caption file; "
            f"{image_paths[missing[0]]} needs {Path(caption_dir, names[missing[0]])}"
        )
    files = [found[name] for name in names]
    captions = [_caption_lines(file) for file in files]
    if empty := [file for file, lines in zip(files, captions, strict=True) if not lines]:
        raise UserError(
            f"{empty[0]}: holds no caption ({_of(len(empty), len(files), 'files')} like this); "
            "write one caption a line"
        )
    if all_images and (unused := sorted(found.keys() - set(names))):
        note(f"{caption_dir}: captions without image, not used: {len(unused)} ({unused[0]}, …)")
    return captions


def _caption_lines(file: Path) -> list[str]:
    try:
        text = read_bytes(file).decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error})") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: is not UTF-8 text; save it as UTF-8") from error
    if "\0" in text:  # UTF-16 without its mark is valid UTF-8
        raise UserError(f"{file}: is not text, it holds NUL bytes; save it as UTF-8")
    return [line.strip() for line in text.splitlines() if line.strip()]


def _of(part: int, whole: int, what: str) -> str:
    return f"{part} of {whole} {what}"


def load_image(path: str | Path, at_least: int | None = None) -> Image.Image:
    """Decode a file as upright 8-bit RGB, whatever it holds; transparent pixels lie on white.

    Of an animated one the first frame counts.

    at_least: a JPEG may be decoded at a half, a quarter or an eighth of its size, as long as both
    sides have so many pixels.
    Raises UnreadableImage (a UserError) with the path if the file is missing or broken.
    """
    with _opened(path) as image:
        if at_least:
            image.draft(None, (at_least, at_least))
        image.load()
        return _to_rgb(ImageOps.exif_transpose(image))


@contextmanager
def _opened(path: str | Path) -> Iterator[Image.Image]:
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


def find_unreadable(paths: Sequence[Path], workers: int = 2) -> Iterator[UnreadableImage | None]:
    """Decode every image; yields for each, in order, None or what is wrong with it."""

    def check(path: Path) -> UnreadableImage | None:
        try:
            load_image(path)
        except UnreadableImage as error:
            return error
        return None

    return read_ahead(check, paths, workers, 8 * workers)


def save_png(
    image: np.ndarray | Image.Image, path: str | Path, text: Mapping[str, str] | None = None
) -> None:
    """Write (H, W, 3) uint8 or a Pillow image as PNG; `text` goes into its text chunks."""
    if not isinstance(image, Image.Image):
        image = Image.fromarray(np.asarray(image))
    chunks = PngInfo()
    for key, value in (text or {}).items():
        chunks.add_text(key, value)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    image.save(path, format="PNG", pnginfo=chunks)


def png_text(path: str | Path) -> dict[str, str]:
    """The text chunks of a PNG, none for other formats; raises UnreadableImage if it is broken."""
    with _opened(path) as image:
        return dict(getattr(image, "text", {}))


def labelled_grid(
    images: np.ndarray,
    captions: Sequence[str] | None,
    path: str | Path,
    columns: int | None = None,
    title: str | None = None,
    text: Mapping[str, str] | None = None,
    icons: Mapping[str, Sequence[np.ndarray]] | None = None,
) -> None:
    """Write pictures, (N, H, W, 3) uint8, as one PNG on white with their captions.

    A caption stands below its picture; one that a whole row shares stands once, above the row (and
    above the rows after it that share it too). `columns` defaults to a nearly square grid. `icons`:
    caption or title -> (H, W, 3) uint8 pictures that stand small before it.
    """
    columns = min(columns or math.ceil(math.sqrt(len(images))), len(images))
    enlarge = math.ceil(MIN_CELL / images.shape[2])
    width, height = images.shape[2] * enlarge, images.shape[1] * enlarge
    gap = width // 12
    full = columns * (width + gap) - gap
    font, title_font = _font("DejaVuSans", width // 14), _font("DejaVuSans-Bold", width // 11)

    texts: list[tuple[int, int, str, ImageFont.FreeTypeFont]] = []  # x, y of the top left corner
    places: list[tuple[int, int]] = []
    thumbnails: list[tuple[int, int, np.ndarray]] = []
    small = width // 4

    def add_text(x: int, y: int, words: str, font: ImageFont.FreeTypeFont, room: int) -> int:
        """Set a block of text, icons first, at most `room` pixels wide; returns the y below it."""
        before = (icons or {}).get(words, ())[:MAX_ICONS]
        for icon in before:
            thumbnails.append((x, y, icon))
            x, room = x + small + gap // 2, room - small - gap // 2
        lines, step = _wrap(words, font, room), round(1.3 * font.size)
        height = max(len(lines) * step, small if before else 0)
        top = y + (height - len(lines) * step) // 2
        texts.extend((x, top + i * step, line, font) for i, line in enumerate(lines))
        return y + height

    y = gap
    if title:
        y = add_text(gap, y, title, title_font, full) + gap // 2
    heading = None
    for start in range(0, len(images), columns):
        row = list(captions[start : start + columns]) if captions is not None else []
        is_shared = len(set(row)) == 1 and (len(row) > 1 or row[0] == heading)
        if is_shared and row[0] != heading:
            y = add_text(gap, y, row[0], font, full) + gap // 3
        heading = row[0] if is_shared else None
        xs = [gap + i * (width + gap) for i in range(min(columns, len(images) - start))]
        places += [(x, y) for x in xs]
        y += height
        if row and not is_shared:
            top = y + gap // 3
            y = max(add_text(x, top, c, font, width) for x, c in zip(xs, row, strict=True))
        y += gap

    canvas = Image.new("RGB", (full + 2 * gap, y), "white")
    for place, pixels in zip(places, images, strict=True):
        picture = Image.fromarray(np.asarray(pixels))
        canvas.paste(picture.resize((width, height), Image.Resampling.BICUBIC), place)
    for x, y, pixels in thumbnails:
        picture = Image.fromarray(pixels).resize((small, small), Image.Resampling.LANCZOS)
        canvas.paste(picture, (x, y))
    draw = ImageDraw.Draw(canvas)
    for x, y, line, font in texts:
        draw.text((x, y), line, fill="#222222", font=font)
    save_png(canvas, path, text)


def _font(name: str, size: int) -> ImageFont.FreeTypeFont:
    """matplotlib ships these, so that pictures look alike on every machine."""
    return ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts", "ttf", f"{name}.ttf"), size)


def _wrap(words: str, font: ImageFont.FreeTypeFont, room: int) -> list[str]:
    """At most MAX_LINES lines of at most `room` pixels; what is cut ends with an ellipsis."""
    lines = [""]
    for word in words.split():
        joined = f"{lines[-1]} {word}".strip()
        if font.getlength(joined) <= room:
            lines[-1] = joined
        else:
            lines.append(_cut(word, font, room))
    lines = [line for line in lines if line]
    if len(lines) > MAX_LINES:
        lines = [*lines[: MAX_LINES - 1], _cut(" ".join(lines[MAX_LINES - 1 :]), font, room)]
    return lines


def _cut(text: str, font: ImageFont.FreeTypeFont, room: int) -> str:
    """`text` if it fits, else as much of it as fits with an ellipsis, at a word's end if it can."""
    if font.getlength(text) <= room:
        return text
    while font.getlength(f"{text} …") > room and text:
        text = text.rpartition(" ")[0] or text[:-1]
    return f"{text} …"
