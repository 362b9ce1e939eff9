"""Unusual images and captions: each is read, or refused by its name."""

import io
import os
import resource
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import crude_face
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tiny import CONTEXT_LENGTH, make_tiny_clip

from models.clip import load_clip
from utils.base.errors import UserError
from utils.data.archive_files import read_bytes
from utils.data.captions import load_captions
from utils.data.images import (
    Sample,
    UnreadableImage,
    center_crop,
    list_images,
    load_image,
    to_uint8_array,
)
from utils.data.lmdb_layout import names_hash
from utils.data.lmdb_reader import LMDBReader
from utils.data.lmdb_writer import LMDBWriter

FACE = crude_face(1, 40)


def palette_with_alpha(path: Path) -> None:
    """Write three colours: a transparent, an opaque and a half transparent one."""
    image = Image.new("P", (40, 40), 0)
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    image.paste(1, (10, 0, 20, 40))
    image.paste(2, (20, 0, 40, 40))
    image.save(path, transparency=bytes([0, 255, 128]))


def animated(path: Path) -> None:
    frames = [crude_face(i, 40) for i in (1, 2, 3)]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=50, lossless=True)


def animated_gif(path: Path) -> None:
    frames = [Image.new("RGB", (40, 40), colour) for colour in ("blue", "red")]
    frames[0].save(path, format="GIF", save_all=True, append_images=frames[1:])


@pytest.mark.parametrize(
    ("name", "make", "pixel"),
    [
        ("a.png", palette_with_alpha, {5: (255, 255, 255), 15: (0, 255, 0), 30: (127, 127, 255)}),
        ("a.png", animated, {5: FACE.getpixel((5, 20))}),  # APNG
        ("a.webp", animated, {5: FACE.getpixel((5, 20))}),
        ("a.png", animated_gif, {5: (0, 0, 255)}),
        ("a.png", lambda path: FACE.save(path, "JPEG", quality=100), {}),  # wrong suffixes
        ("a.jpg", lambda path: FACE.save(path, "PNG"), {5: FACE.getpixel((5, 20))}),
        ("a.webp", lambda path: FACE.save(path, "BMP"), {5: FACE.getpixel((5, 20))}),
    ],
)
def test_what_a_file_holds_counts_and_of_an_animation_the_first_frame(
    tmp_path, name, make: Callable[[Path], None], pixel
):
    make(tmp_path / name)
    image = load_image(tmp_path / name)
    assert (image.mode, image.size) == ("RGB", (40, 40))
    assert {x: image.getpixel((x, 20)) for x in pixel} == pixel


def write_tiff(path: Path, pixels: np.ndarray, sample_format: int) -> None:
    """Write (H, W, C) numbers as a TIFF; Pillow writes no 16-bit colours.

    sample_format: 1 = unsigned whole numbers, 3 = floating point.
    """
    height, width, channels = pixels.shape
    bits = 8 * pixels.dtype.itemsize
    colour = 2 if channels == 3 else 1  # RGB, or grey whose zero is black
    tags = [(256, width), (257, height), (259, 1), (262, colour), (277, channels), (278, height)]
    tags += [(258, bits), (279, pixels.nbytes), (339, sample_format)]
    end = 8 + 2 + 12 * (len(tags) + 1) + 4
    more = b""
    if channels == 3:  # three numbers do not fit into a tag: it holds their place
        more = struct.pack("<3H", bits, bits, bits) + struct.pack("<3H", *[sample_format] * 3)
    rows = [(273, 4, 1, end + len(more))]
    for tag, value in tags:
        is_long = channels == 3 and tag in (258, 339)
        rows.append((tag, 3, 3, end + 6 * (tag == 339)) if is_long else (tag, 4, 1, value))
    directory = b"".join(struct.pack("<HHII", *row) for row in sorted(rows))
    head = struct.pack("<2sHIH", b"II", 42, 8, len(rows)) + directory + bytes(4)
    path.write_bytes(head + more + pixels.tobytes())


@pytest.mark.parametrize("channels", [1, 3])
def test_a_16_bit_tiff_is_scaled_to_8_bits(tmp_path, channels):
    expected = np.asarray(FACE)[..., :channels]
    write_tiff(tmp_path / "a.TIF", expected.astype(np.uint16) * 257, sample_format=1)
    (sample,) = list_images(tmp_path)
    assert (np.asarray(load_image(sample.path)) == expected).all()


def test_a_tiff_without_known_range_is_refused(tmp_path):
    path = tmp_path / "a.tiff"
    write_tiff(path, np.full((40, 40, 1), 0.5, np.float32), sample_format=3)
    with pytest.raises(UnreadableImage, match=r"grey has no known range: save it as 8 or 16 bits"):
        load_image(path)


@pytest.mark.parametrize("size", [(1, 1), (1, 30), (20_000, 10), (10, 20_000), (65_000, 1)])
def test_extreme_sizes_become_a_square_in_little_memory(tmp_path, size):
    image = Image.new("RGB", size, "red")  # with a blue middle
    box = [(side - 400) // 2 if side > 400 else 0 for side in size]
    image.paste("blue", (*box, *(side - edge for side, edge in zip(size, box, strict=True))))
    image.save(tmp_path / "a.png")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    pixels = to_uint8_array(tmp_path / "a.png", 512)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kilobytes
    assert pixels.shape == (512, 512, 3)
    assert (pixels == (0, 0, 255)).all()


def bomb(path: Path) -> None:
    """Write a small PNG whose header states 60,000 x 60,000 pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content))
            + kind
            + content
            + struct.pack(">I", zlib.crc32(kind + content))
        )

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    rows = zlib.compress(b"\0" * 10_000_000)
    parts = [chunk(b"IHDR", header), chunk(b"IDAT", rows), chunk(b"IEND", b"")]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))


def cut_jpeg(path: Path) -> None:
    FACE.resize((200, 200)).save(path, "JPEG")
    path.write_bytes(path.read_bytes()[:-900])


def postscript(path: Path) -> None:
    """Write an EPS, which Pillow would hand to Ghostscript."""
    FACE.save(path, "EPS")


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (bomb, "60000 x 60000 pixels are over 500 million: make it smaller"),
        (cut_jpeg, "image file is truncated"),
        (lambda path: path.write_bytes(b""), "of no known format"),
        (lambda path: path.write_text("<html>not found</html>"), "of no known format"),
        (postscript, "of no known format"),
    ],
)
def test_an_image_that_cannot_be_read_is_named_with_the_reason(tmp_path, make, said):
    path = tmp_path / "bad.jpg"
    make(path)
    with pytest.raises(UnreadableImage, match=f"^{path}: unreadable image \\({said}.*; repair or"):
        load_image(path)


def test_a_folder_in_the_place_of_an_image_is_named_as_one(tmp_path):
    with pytest.raises(UnreadableImage, match=f"^{tmp_path}: is a folder; name an image in it$"):
        load_image(tmp_path)


def test_an_archive_member_that_unfolds_to_gigabytes_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("1.png", b"x")
    content = (tmp_path / "a.zip").read_bytes()
    huge = struct.pack("<I", 4_000_000_000)
    sizes = [i + 24 for i in range(len(content)) if content[i : i + 4] == b"PK\x01\x02"]
    for at in sizes:
        content = content[:at] + huge + content[at + 4 :]
    (tmp_path / "a.zip").write_bytes(content)
    with pytest.raises(OSError, match=r"a\.zip states 4\.0 GB"):
        read_bytes(tmp_path / "a.zip" / "1.png")


def test_file_names_need_not_be_utf_8(tmp_path):
    name = os.fsdecode(b"caf\xe9-1")
    FACE.save(tmp_path / f"{name}.png")
    (sample,) = list_images(tmp_path)
    assert sample.name == name
    assert to_uint8_array(sample.path, 16).shape == (16, 16, 3)
    meta = {"names": [name], "names_hash": names_hash([name])}
    for _ in range(2):  # the second finds the same names there
        with LMDBWriter(tmp_path / "z", "z", meta, 1) as writer:
            if not writer.complete:
                writer.append(np.zeros((1, 4, 2, 2)))
    assert LMDBReader(tmp_path / "z").info.meta["names"] == [name]


CAPTIONS = {
    "emoji": "a face 😀👩🏽‍🦰 smiling",
    "Arabic": "وجه امرأة مبتسمة",
    "many words": "word " * 10_000,
    "Windows": "one\r\ntwo",
    "BOM": "\ufeffone",
    "control": "one\x07 two\x1b[31m",
}


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return load_clip(make_tiny_clip(tmp_path_factory.mktemp("clip") / "clip"))


@pytest.mark.parametrize("kind", CAPTIONS)
def test_captions_of_every_kind_are_read_and_embedded(tmp_path, clip, kind):
    FACE.save(tmp_path / "1.png")
    (tmp_path / "1.txt").write_bytes(CAPTIONS[kind].encode())
    (captions,) = load_captions([Sample("1", tmp_path / "1.png")], tmp_path)
    assert captions == [line for line in CAPTIONS[kind].strip("\ufeff ").split("\r\n")]
    assert clip.encode_texts(captions).isfinite().all()
    is_long = len(CAPTIONS[kind].encode()) > CONTEXT_LENGTH
    assert clip.count_truncated(captions) == is_long


@pytest.mark.parametrize("content", [b"one\0two", "one\ntwo".encode("utf-16-le")])
def test_captions_with_nul_bytes_are_refused_by_name(tmp_path, content):
    FACE.save(tmp_path / "1.png")
    (tmp_path / "1.txt").write_bytes(content)
    with pytest.raises(UserError, match=r"1\.txt: is not text, it holds NUL bytes; save it as"):
        load_captions([Sample("1", tmp_path / "1.png")], tmp_path)


@given(
    start=st.sampled_from(
        [b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"RIFF\0\0\0\0WEBP", b"II*\0\x08\0\0\0"]
    ),
    rest=st.binary(max_size=300),
)
def test_any_bytes_are_an_image_or_unreadable(tmp_path_factory, start, rest):
    path = tmp_path_factory.getbasetemp() / "any.png"
    path.write_bytes(start + rest)
    try:
        assert load_image(path).mode == "RGB"
    except UnreadableImage as error:
        assert str(error).startswith(f"{path}: unreadable image (")


@given(
    width=st.integers(1, 300),
    height=st.integers(1, 300),
    size=st.sampled_from([16, 32, 64]),
    mode=st.sampled_from(["RGB", "L", "RGBA", "1", "P", "LA"]),
)
def test_any_image_becomes_the_middle_square(width, height, size, mode):
    """The image fades from black to white along its longer side: its middle is grey."""
    slope = np.linspace(0, 255, max(width, height))
    pixels = np.tile(slope, (min(width, height), 1)).astype(np.uint8)
    image = Image.fromarray(pixels if width >= height else pixels.T).convert(mode)
    file = io.BytesIO()
    image.save(file, "PNG")
    with Image.open(file) as read:
        cropped = np.asarray(center_crop(read.convert("RGB"), size)).astype(float)
    assert cropped.shape == (size, size, 3)
    if max(width, height) > 1 and mode != "1":
        assert abs(cropped.mean() - 127.5) < 10
        along = cropped.mean((0, 2)) if width >= height else cropped.mean((1, 2))
        assert (np.diff(along) > -3).all()
