"""Metadata beside the pixels never stops reading them; other damage is UnreadableImage."""

import io
import random
import struct
import threading
import zlib

import numpy as np
import pytest
from conftest import crude_face
from image_files import encoded, icc_profile, png_chunk, with_chunks, write_tiff
from PIL import Image, ImageOps, PngImagePlugin

from utils.data import images
from utils.data.images import UnreadableImage, load_image
from utils.sampling.image_files import png_text
from utils.sampling.prompts import as_source

FACE = crude_face(3, 24)
ROTATED = np.asarray(FACE.transpose(Image.Transpose.ROTATE_270))
XMP = b'<rdf:Description xmlns:tiff="t" tiff:Orientation="6"/>'


def exif(*entries: tuple[int, int, int, bytes], order: str = ">") -> bytes:
    """Return EXIF with these tags: number, type, count, value or its place."""
    head = b"MM\0*\0\0\0\x08" if order == ">" else b"II*\0\x08\0\0\0"
    rows = b"".join(struct.pack(f"{order}HHI4s", *entry) for entry in entries)
    return b"Exif\0\0" + head + struct.pack(f"{order}H", len(entries)) + rows + bytes(4)


UPRIGHT = (0x0112, 3, 1, b"\0\6\0\0")
ODD = {
    "resolution as text": exif(UPRIGHT, (0x011A, 2, 3, b"72\0\0")),
    "text that lies nowhere": exif((0x010F, 2, 900, b"\xff\xff\xff\xf0"), UPRIGHT),
    "unknown type": exif((0x010F, 99, 7, b"abcd"), UPRIGHT),
    "rational with zero": exif(UPRIGHT, (0x011A, 5, 1, b"\0\0\0\x08")),
    "directory in a circle": exif(UPRIGHT, (0x8769, 4, 1, b"\0\0\0\x08")),
    "place given as text": exif(UPRIGHT, (0x8825, 2, 4, b"gps\0")),
    "more tags than bytes": exif(UPRIGHT)[:14] + b"\xff\xff" + exif(UPRIGHT)[16:],
    "little-endian": exif((0x0112, 3, 1, b"\6\0\0\0"), (0x011A, 2, 3, b"72\0\0"), order="<"),
}
FORMS = ("JPEG", "PNG", "WEBP")


def read(tmp_path, content: bytes) -> np.ndarray:
    (tmp_path / "image").write_bytes(content)
    return np.asarray(load_image(tmp_path / "image"))


def upright(form: str, data: bytes | None) -> bytes:
    options = {"lossless": True} if form == "WEBP" else {}
    return encoded(FACE, form, **options, **({"exif": data} if data else {}))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", ODD)
def test_orientation_is_used_and_odd_tags_beside_it_are_not(tmp_path, form, kind):
    plain = read(tmp_path, upright(form, None))
    rotated = np.asarray(Image.fromarray(plain).transpose(Image.Transpose.ROTATE_270))
    assert (read(tmp_path, upright(form, ODD[kind])) == rotated).all()


@pytest.mark.parametrize("value", [b"\0\0\0\0", b"\0\x09\0\0", b"\xff\xff\0\0"])
def test_an_orientation_that_does_not_exist_is_ignored(tmp_path, value):
    content = upright("PNG", exif((0x0112, 3, 1, value)))
    assert (read(tmp_path, content) == np.asarray(FACE)).all()


@pytest.mark.parametrize("form", ["PNG", "WEBP", "JPEG"])
def test_the_orientation_of_xmp_counts_without_exif(tmp_path, form):
    if form == "PNG":
        text = PngImagePlugin.PngInfo()
        text.add_itxt("XML:com.adobe.xmp", XMP.decode())
        content = encoded(FACE, form, pnginfo=text)
    else:
        content = encoded(FACE, form, xmp=XMP, **({"lossless": True} if form == "WEBP" else {}))
    plain = Image.fromarray(read(tmp_path, upright(form, None)))
    rotated = np.asarray(plain.transpose(Image.Transpose.ROTATE_270))
    assert (read(tmp_path, content) == rotated).all()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["TIFF", "AVIF", "PNG"])
def test_every_orientation_is_that_of_pillow(tmp_path, form, orientation):
    tags = Image.Exif()
    tags[0x0112] = orientation
    content = encoded(crude_face(1, 32).crop((0, 0, 32, 20)), form, exif=tags)
    with Image.open(io.BytesIO(content)) as image:
        expected = ImageOps.exif_transpose(image).convert("RGB")
    assert (read(tmp_path, content) == np.asarray(expected)).all()


def damaged_notes() -> dict[str, bytes]:
    """Return files of which everything beside the pixels is damaged."""
    png, jpeg, gif = (encoded(FACE, form) for form in ("PNG", "JPEG", "GIF"))

    def segment(marker: int, data: bytes) -> bytes:
        return struct.pack(">BBH", 0xFF, marker, len(data) + 2) + data

    start = 13 + 3 * 2 ** ((gif[10] & 7) + 1)
    broken = [
        png_chunk(b"gAMA", b"\0"),
        png_chunk(b"cHRM", b"\0" * 5),
        png_chunk(b"iCCP", b"name"),
        png_chunk(b"pHYs", b"\0"),
        png_chunk(b"eXIf", b"\0\1"),
        png_chunk(b"tEXt", b"\xff\xfe"),
        png_chunk(b"iTXt", b"a\0\1\0\0\0notzlib"),
        png_chunk(b"zTXt", b"a\0\7rest"),
        png_chunk(b"acTL", b"\0"),
        png_chunk(b"fcTL", b"\0"),
    ]
    segments = [
        segment(0xE0, b"JFIF\0\1"),
        segment(0xEE, b"Adobe\0"),
        segment(0xED, b"Photoshop 3.0\0008BIM\4"),
        segment(0xE2, b"ICC_PROFILE\0\1\5" + b"x" * 30),
        segment(0xE2, b"MPF\0junk"),
        segment(0xE1, b"Exif\0\0MM"),
        segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0\xff"),
        segment(0xFE, b""),
    ]
    found = {f"PNG {c[4:8].decode()}": with_chunks(png, c) for c in broken}
    found["PNG checksum"] = with_chunks(png, png_chunk(b"tEXt", b"a\0b")[:-1] + b"!")
    found["PNG name"] = with_chunks(png, png_chunk(b"\xffEXt", b"a\0b"))
    found |= {f"JPEG {i}": jpeg[:2] + part + jpeg[2:] for i, part in enumerate(segments)}
    blocks = {
        "loop": b"!\xff\x0bNETSCAPE2.0\3\1\0\0\0",
        "comment": b"!\xfe\1x\0",
        "odd": b"!\xf9\1x\0",
    }
    return found | {f"GIF {k}": gif[:start] + block + gif[start:] for k, block in blocks.items()}


@pytest.mark.parametrize("kind", damaged_notes())
def test_damaged_notes_of_every_format_are_ignored(tmp_path, kind):
    plain = read(tmp_path, encoded(FACE, kind.split()[0]))
    assert (read(tmp_path, damaged_notes()[kind]) == plain).all()


@pytest.mark.parametrize("tag", [0x8769, 0x8825, 0xA005, 282, 700, 34675])
def test_damaged_directories_of_a_tiff_are_ignored(tmp_path, tag):
    """Tags lie nowhere, or have a type that is not theirs."""
    size = {256: (24,), 257: (24,), 258: (8, 8, 8), 262: (2,), 277: (3,), 278: (24,)}
    write_tiff(tmp_path / "a.tif", [FACE.tobytes()], {**size, 0x0112: (6,), tag: (0xFFFFFFF0,) * 2})
    assert (np.asarray(load_image(tmp_path / "a.tif")) == ROTATED).all()


def test_damaged_exif_of_an_avif_is_ignored(tmp_path):
    tags = Image.Exif()
    tags[0x0112], tags[0x011A] = 6, 72.0
    content = encoded(FACE, "AVIF", exif=tags)
    at = content.index(struct.pack(">HHI", 0x011A, 5, 1)) + 2
    broken = content[:at] + b"\0\2" + content[at + 2 :]  # the resolution is text
    assert (read(tmp_path, broken) == read(tmp_path, content)).all()
    assert read(tmp_path, content).shape == ROTATED.shape


@pytest.mark.parametrize("kind", ["text", "many texts", "profile", "damaged profile"])
def test_no_text_and_no_profile_is_too_large(tmp_path, kind):
    text = PngImagePlugin.PngInfo()
    if kind == "text":
        text.add_text("workflow", "1234567890" * 250_000, zip=True)
    elif kind == "many texts":
        for i in range(80):
            text.add_text(f"workflow {i}", "1234567890" * 100_000, zip=True)
    profile = icc_profile("linear") + bytes(3_000_000) if kind == "profile" else None
    if kind == "damaged profile":
        profile = random.Random(0).randbytes(1_100_000)
    got = read(tmp_path, encoded(FACE, "PNG", pnginfo=text, icc_profile=profile))
    expected = np.asarray(FACE) if kind != "profile" else None
    if expected is None:  # a large profile counts like a small one
        expected = read(tmp_path, encoded(FACE, "PNG", icc_profile=icc_profile("linear")))
    assert (got == expected).all()


def test_a_text_that_unfolds_to_gigabytes_takes_no_memory(tmp_path):
    packing = zlib.compressobj()
    data = b"".join(packing.compress(bytes(1 << 24)) for _ in range(5)) + packing.flush()
    png = with_chunks(encoded(FACE, "PNG"), png_chunk(b"zTXt", b"XML:com.adobe.xmp\0\0" + data))
    assert (read(tmp_path, png) == np.asarray(FACE)).all()


def test_large_photos_are_read_and_pillows_limit_stays_for_others(tmp_path, monkeypatch):
    """A panorama of 200 megapixels stands for all: here Pillow's limit is 100 pixels."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    for form in ("PNG", "TIFF", "WEBP", "GIF"):
        assert read(tmp_path, encoded(FACE, form)).shape == (24, 24, 3)
    assert Image.MAX_IMAGE_PIXELS == 100


def test_threads_that_read_at_once_leave_the_limit_as_it_was(tmp_path):
    before = Image.MAX_IMAGE_PIXELS
    paths = [tmp_path / f"{i}.png" for i in range(8)]
    for path in paths:
        FACE.save(path)
    threads = [threading.Thread(target=load_image, args=(path,)) for path in paths * 4]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert before == Image.MAX_IMAGE_PIXELS


def test_an_absurd_size_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "MOST_PIXELS", 500)
    with pytest.raises(UnreadableImage, match="24 x 24 pixels are over .* make it smaller"):
        read(tmp_path, encoded(FACE, "JPEG"))


@pytest.mark.parametrize("fault", [TypeError, struct.error, AttributeError, MemoryError, KeyError])
def test_any_exception_of_a_decoder_is_an_unreadable_image(tmp_path, monkeypatch, fault):
    def load(self: Image.Image) -> None:
        raise fault("broken inside")

    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", load)
    with pytest.raises(UnreadableImage, match=r"image: unreadable image \('?broken inside"):
        read(tmp_path, encoded(FACE, "PNG"))


def test_an_image_that_a_user_opened_is_turned_and_converted_once(tmp_path):
    tags = Image.Exif()
    tags[0x0112] = 6
    profile = icc_profile("linear")
    content = encoded(FACE, "PNG", exif=tags, icc_profile=profile)
    pixels = as_source(Image.open(io.BytesIO(content))).content
    assert (np.asarray(pixels) == read(tmp_path, content)).all()
    again = as_source(pixels).content
    assert (np.asarray(again) == np.asarray(pixels)).all()


def test_texts_of_a_png_are_read_beside_damaged_ones(tmp_path):
    text = PngImagePlugin.PngInfo()
    text.add_text("prompt", "a face ☺", zip=True)
    text.add_text("seed", "3")
    bad = png_chunk(b"zTXt", b"other\0\0damaged")
    (tmp_path / "a.png").write_bytes(with_chunks(encoded(FACE, "PNG", pnginfo=text), bad))
    assert png_text(tmp_path / "a.png") == {"prompt": "a face ☺", "seed": "3"}
