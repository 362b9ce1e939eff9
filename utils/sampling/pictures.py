"""How pictures are written: single PNGs, and labelled grids."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from utils.data.images import opened_image

MIN_CELL = 160  # pixels; smaller pictures are enlarged in grids so that captions can be read
MAX_LINES = 6  # of a caption
MAX_ICONS = 3  # before a caption


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
    with opened_image(path) as image:
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
