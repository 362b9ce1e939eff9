"""Write images: single PNGs, and labelled grids."""

import importlib.util
import io
import math
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from utils.base.text import printable
from utils.data.archive_files import read_bytes
from utils.data.image_metadata import texts_of_png
from utils.data.images import opened_image

MIN_CELL = 160  # pixels; smaller images are enlarged in grids so that captions can be read
MAX_LINES = 6  # of a caption
MAX_ICONS = 3  # in front of a caption
# x and y of the top left corner, pixels, size on the page, filter
Placed = tuple[int, int, np.ndarray, tuple[int, int], Image.Resampling]


def save_png(
    image: np.ndarray | Image.Image, path: str | Path, text: Mapping[str, str] | None = None
) -> None:
    """Write (H, W, 3) uint8 or a Pillow image as PNG, with `text` as its text chunks."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_bytes(png_bytes(image, text))


def png_bytes(image: np.ndarray | Image.Image, text: Mapping[str, str] | None = None) -> bytes:
    """Return the content of a PNG file; see `save_png`."""
    if not isinstance(image, Image.Image):
        image = Image.fromarray(np.asarray(image))
    chunks = PngInfo()
    for key, value in (text or {}).items():
        chunks.add_text(key, printable(value))
    file = io.BytesIO()
    # Made for filtered images: three times faster than zlib's default, and smaller on faces.
    image.save(file, format="PNG", pnginfo=chunks, compress_type=zlib.Z_RLE)
    return file.getvalue()


def png_text(path: str | Path) -> dict[str, str]:
    """Return the text chunks of a PNG that can be read, or none for other formats.

    Raises UnreadableImage if the image is damaged.
    """
    with opened_image(path) as image:
        image.load()
    return texts_of_png(read_bytes(Path(path)))


def labelled_grid(
    images: np.ndarray,
    captions: Sequence[str] | None,
    columns: int | None = None,
    title: str | None = None,
    icons: Mapping[str, Sequence[np.ndarray]] | None = None,
) -> Image.Image:
    """Lay out images, (N, H, W, 3) uint8, on white with their captions.

    A caption stands below its image. A caption of a whole row stands once, above the row; rows of
    the same caption after it have none of their own.

    columns: images in a row; None = a nearly square grid.
    icons: caption or title -> (H, W, 3) uint8 images, which stand small before it.
    """
    columns = min(columns or math.ceil(math.sqrt(len(images))), len(images))
    page = _GridPage(images.shape[2], images.shape[1], columns, icons or {})
    if title:
        page.add_title(title)
    for start in range(0, len(images), columns):
        stop = start + columns
        page.add_row(images[start:stop], captions[start:stop] if captions is not None else ())
    return page.render()


class _GridPage:
    """A page that is filled from top to bottom, and rendered when its height is known."""

    def __init__(
        self, width: int, height: int, columns: int, icons: Mapping[str, Sequence[np.ndarray]]
    ) -> None:
        """`width`, `height`: pixels of an image, which is enlarged to at least MIN_CELL."""
        enlarge = math.ceil(MIN_CELL / width)
        self.width, self.height = width * enlarge, height * enlarge
        self.gap = self.width // 12
        self.full = columns * (self.width + self.gap) - self.gap  # width of a row
        self.icon_side = self.width // 4
        self.font = _font("DejaVuSans", self.width // 14)
        self.title_font = _font("DejaVuSans-Bold", self.width // 11)
        self.icons = icons
        self.bottom = self.gap  # y of what comes next
        self.heading: str | None = None  # caption that the last row shared
        # All with x and y of the top left corner.
        self.texts: list[tuple[int, int, str, ImageFont.FreeTypeFont]] = []
        self.images: list[Placed] = []

    def add_title(self, title: str) -> None:
        """Set a title over the whole width."""
        self.bottom = self._add_text(self.gap, self.bottom, title, self.title_font, self.full)
        self.bottom += self.gap // 2

    def add_row(self, images: np.ndarray, captions: Sequence[str]) -> None:
        """Place a row of images (N, H, W, 3), with N captions or without any."""
        gap, font = self.gap, self.font
        shared = len(set(captions)) == 1 and (len(captions) > 1 or captions[0] == self.heading)
        if shared and captions[0] != self.heading:
            self.bottom = self._add_text(gap, self.bottom, captions[0], font, self.full) + gap // 3
        self.heading = captions[0] if shared else None
        xs = [gap + i * (self.width + gap) for i in range(len(images))]
        size, filter = (self.width, self.height), Image.Resampling.BICUBIC
        self.images += [(x, self.bottom, i, size, filter) for x, i in zip(xs, images, strict=True)]
        self.bottom += self.height
        if captions and not shared:
            top = self.bottom + gap // 3
            below = zip(xs, captions, strict=True)
            self.bottom = max(self._add_text(x, top, c, font, self.width) for x, c in below)
        self.bottom += gap

    def _add_text(self, x: int, y: int, words: str, font: ImageFont.FreeTypeFont, room: int) -> int:
        """Set a block of text, icons first, at most `room` pixels wide; return the y below it."""
        icons = self.icons.get(words, ())[:MAX_ICONS]
        for icon in icons:
            size = (self.icon_side, self.icon_side)
            self.images.append((x, y, icon, size, Image.Resampling.LANCZOS))
            step = self.icon_side + self.gap // 2
            x, room = x + step, room - step
        lines, line_height = _wrap(words, font, room), round(1.3 * font.size)
        height = max(len(lines) * line_height, self.icon_side if icons else 0)
        top = y + (height - len(lines) * line_height) // 2
        self.texts += [(x, top + i * line_height, line, font) for i, line in enumerate(lines)]
        return y + height

    def render(self) -> Image.Image:
        """Return the page as it has been filled."""
        canvas = Image.new("RGB", (self.full + 2 * self.gap, self.bottom), "white")
        for x, y, pixels, size, filter in self.images:
            canvas.paste(Image.fromarray(np.asarray(pixels)).resize(size, filter), (x, y))
        pen = ImageDraw.Draw(canvas)
        for x, y, line, font in self.texts:
            pen.text((x, y), line, fill="#222222", font=font)
        return canvas


def _font(name: str, size: int) -> ImageFont.FreeTypeFont:
    """Return a font that matplotlib ships, so that grids look equal on every machine."""
    package = importlib.util.find_spec("matplotlib")  # found, and not imported
    assert package is not None and package.origin is not None
    fonts = Path(package.origin).with_name("mpl-data") / "fonts" / "ttf"
    return ImageFont.truetype(fonts / f"{name}.ttf", size)


def _wrap(words: str, font: ImageFont.FreeTypeFont, room: int) -> list[str]:
    """Break `words` into at most MAX_LINES lines of `room` pixels; an ellipsis marks a cut."""
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
    """Return `text` if it fits; else cut it, between words if possible, and add an ellipsis."""
    if font.getlength(text) <= room:
        return text
    while font.getlength(f"{text} …") > room and text:
        text = text.rpartition(" ")[0] or text[:-1]
    return f"{text} …"
