"""Robots' faces, a style that no shipped network knows, in many kinds of files."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

COLOURS = {"red": "#c8372d", "blue": "#2d6fc8", "green": "#3c9a4a", "yellow": "#e0b62f"}
GERMAN = {"red": "rotem", "blue": "blauem", "green": "grünem", "yellow": "gelbem"}
SHAPES = [(72, 96), (110, 80), (64, 64), (150, 70)]  # width, height


def robot(index: int) -> tuple[Image.Image, list[str]]:
    """Return a robot's face of odd shape; return it with two captions, one English, one German."""
    rng = np.random.default_rng(index)
    colour, eyes = list(COLOURS)[index % 4], 1 + int(rng.integers(3))
    width, height = SHAPES[int(rng.integers(4))]
    image = Image.new("RGB", (width, height), ["#f4f1ea", "#222831"][int(rng.integers(2))])
    canvas = ImageDraw.Draw(image)
    canvas.line((width / 2, 2, width / 2, height / 4), fill="#888888", width=3)
    box = (width / 5, height / 5, width * 4 / 5, height * 9 / 10)
    canvas.rectangle(box, fill=COLOURS[colour], outline="#111111", width=2)
    for eye in range(eyes):
        x, y = width * (eye + 1) / (eyes + 1), height * 0.45
        canvas.rectangle((x - 4, y - 4, x + 4, y + 4), fill="#ffffff", outline="#111111")
    canvas.rectangle((width * 0.35, height * 0.7, width * 0.65, height * 0.75), fill="#111111")
    captions = [
        f"a robot with a {colour} head and {eyes} square eyes 🤖",
        f"ein Roboter mit {GERMAN[colour]} Kopf",
    ]
    return image, captions


def _turned_jpeg(image: Image.Image, path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # a viewer rotates it by a quarter
    image.rotate(90, expand=True).save(path, exif=exif)


def _grey_16_bit(image: Image.Image, path: Path) -> None:
    Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257).save(path)


def _half_transparent(image: Image.Image, path: Path) -> None:
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    image.save(path)


KINDS: list[tuple[str, Callable[[Image.Image, Path], None]]] = [
    ("png", Image.Image.save),
    ("png", lambda image, path: image.quantize(16).save(path)),
    ("jpg", lambda image, path: image.convert("CMYK").save(path)),
    ("png", _grey_16_bit),
    ("webp", Image.Image.save),
    ("png", _half_transparent),
    ("JPG", _turned_jpeg),
    ("jpeg", lambda image, path: image.convert("L").save(path)),
    ("tif", lambda image, path: image.save(path, compression="tiff_lzw")),
]


def write_robots(folder: Path, count: int, first: int = 0) -> None:
    """Write robots to `folder/images`, a few in a folder below, and captions to `folder/captions`.

    `first`: the number of the first robot; others look different.
    """
    for index in range(first, first + count):
        image, lines = robot(index)
        suffix, save = KINDS[index % len(KINDS)]
        name = f"my robots/Nr. {index} grün" if index % 5 == 0 else f"robot_{index}"
        image_file = folder / "images" / f"{name}.{suffix}"
        text = folder / "captions" / f"{name}.txt"
        for path in (image_file, text):
            path.parent.mkdir(parents=True, exist_ok=True)
        save(image, image_file)
        text.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
