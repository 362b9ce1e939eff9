"""Profiles and gamma of a file count: every image is read as sRGB."""

import io
import struct
import zlib

import numpy as np
import pytest
from conftest import crude_face
from image_files import (
    SPACES,
    cmyk_profile,
    encoded,
    icc_profile,
    png_chunk,
    with_chunks,
    write_tiff,
)
from PIL import Image, ImageCms

from utils.data.images import UnreadableImage, load_image

SRGB = ImageCms.createProfile("sRGB")
RAMP = np.arange(256, dtype=np.uint8)


@pytest.fixture(scope="module")
def face() -> Image.Image:
    """An image of many colours, saturated and dark ones among them."""
    pixels = np.asarray(crude_face(2, 48)).copy()
    pixels[:16] = np.random.default_rng(0).integers(0, 256, (16, 48, 3))
    return Image.fromarray(pixels)


def read(tmp_path, content: bytes) -> np.ndarray:
    """Return the pixels of a file as (H, W, 3) integers."""
    (tmp_path / "image").write_bytes(content)
    return np.asarray(load_image(tmp_path / "image")).astype(int)


def converted(image: Image.Image, profile: bytes) -> np.ndarray:
    """Return what a reader with colour management shows."""
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    return np.asarray(ImageCms.profileToProfile(image, source, SRGB, outputMode="RGB")).astype(int)


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize(
    ("form", "options"),
    [
        ("PNG", {}),
        ("JPEG", {"quality": 95, "subsampling": 0}),
        ("WEBP", {"lossless": True}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("AVIF", {"quality": 90}),
    ],
)
def test_an_embedded_profile_is_converted_to_srgb(tmp_path, face, space, form, options):
    profile = icc_profile(space)
    content = encoded(face, form, icc_profile=profile, **options)
    bare = Image.open(io.BytesIO(content)).convert("RGB")
    assert abs(read(tmp_path, content) - converted(bare, profile)).max() <= 1
    assert abs(converted(bare, profile) - np.asarray(bare)).max() > 10


def test_jpeg_2000_and_bmp_and_gif_may_hold_profiles_too(tmp_path, face):
    profile = icc_profile("Adobe RGB")
    expected = converted(face, profile)
    jp2 = encoded(face, "JPEG2000", irreversible=False)
    at = jp2.index(b"colr") - 4
    old = struct.unpack_from(">I", jp2, at)[0]
    box = struct.pack(">I4sBBB", 11 + len(profile), b"colr", 2, 0, 0) + profile
    jp2 = bytearray(jp2[:at] + box + jp2[at + old :])
    header = jp2.index(b"jp2h") - 4
    jp2[header : header + 4] = struct.pack(
        ">I", struct.unpack_from(">I", jp2, header)[0] - old + len(box)
    )
    assert abs(read(tmp_path, bytes(jp2)) - expected).max() <= 1

    bmp = encoded(face, "BMP")
    pixels = bmp[54:]
    fields = struct.pack("<I52s", 124, bmp[18:54].ljust(52, b"\0"))
    header = fields + struct.pack("<I48xIIII", 0x4D424544, 4, 124 + len(pixels), len(profile), 0)
    start = struct.pack("<2sI4xI", b"BM", 138 + len(pixels) + len(profile), 138)
    assert abs(read(tmp_path, start + header + pixels + profile) - expected).max() <= 1

    gif = encoded(face.quantize(8), "GIF")
    bare = np.asarray(Image.open(io.BytesIO(gif)).convert("RGB"))
    at = 13 + 3 * 2 ** ((gif[10] & 7) + 1)
    parts = [profile[i : i + 255] for i in range(0, len(profile), 255)]
    blocks = b"".join(bytes([len(part)]) + part for part in (b"ICCRGBG1012", *parts))
    gif = gif[:at] + b"!\xff" + blocks + b"\0" + gif[at:]
    assert abs(read(tmp_path, gif) - converted(Image.fromarray(bare), profile)).max() <= 1


@pytest.mark.parametrize("form", ["PNG", "JPEG", "TIFF"])
def test_a_profile_of_srgb_changes_no_pixel(tmp_path, face, form):
    profile = ImageCms.ImageCmsProfile(SRGB).tobytes()
    plain = read(tmp_path, encoded(face, form))
    assert (read(tmp_path, encoded(face, form, icc_profile=profile)) == plain).all()


@pytest.mark.parametrize(
    ("image", "profile"),
    [
        ("RGB", b"no profile at all"),
        ("RGB", icc_profile("ProPhoto")[:200]),  # cut
        ("RGB", icc_profile("grey 1.0")),  # of another kind of pixels
        ("CMYK", icc_profile("ProPhoto")),
    ],
)
def test_a_profile_that_cannot_be_used_is_ignored(tmp_path, face, image, profile):
    face = face.convert(image)
    plain = read(tmp_path, encoded(face, "TIFF"))
    assert (read(tmp_path, encoded(face, "TIFF", icc_profile=profile)) == plain).all()


def test_grey_of_8_and_16_bits_is_converted_by_profiles_of_grey(tmp_path):
    profile = icc_profile("grey 1.0")
    grey = Image.fromarray(RAMP[None])
    expected = converted(grey, profile)
    assert (read(tmp_path, encoded(grey, "PNG", icc_profile=profile)) == expected).all()
    deep = Image.fromarray(RAMP[None].astype(np.uint16) * 257)
    got = read(tmp_path, encoded(deep, "PNG", icc_profile=profile))
    assert abs(got - expected).max() <= 1
    assert (got[0, 60, 0], got[0, 255, 0]) == (133, 255)


def test_a_grey_photo_with_a_profile_of_rgb_is_converted_by_it(tmp_path):
    grey = Image.fromarray(RAMP[None])
    got = read(tmp_path, encoded(grey, "PNG", icc_profile=icc_profile("linear")))
    assert (got == converted(grey.convert("RGB"), icc_profile("linear"))).all()


@pytest.mark.parametrize("mode", ["P", "RGBA", "LA"])
def test_colours_of_palettes_and_beside_alpha_are_converted_too(tmp_path, face, mode):
    image = face.quantize(16) if mode == "P" else face.convert(mode)
    profile = icc_profile("grey 1.8" if mode == "LA" else "ProPhoto")
    got = read(tmp_path, encoded(image, "PNG", icc_profile=profile))
    expected = converted(image.convert("L" if mode == "LA" else "RGB"), profile)
    assert abs(got - expected).max() <= 1


def test_transparent_pixels_become_white_whatever_the_profile(tmp_path):
    image = Image.new("RGBA", (4, 4), (10, 20, 30, 0))
    got = read(tmp_path, encoded(image, "PNG", icc_profile=icc_profile("ProPhoto")))
    assert (got == 255).all()


def gamma(value: float) -> bytes:
    return png_chunk(b"gAMA", struct.pack(">I", round(value * 100_000)))


SRGB_CHUNK = png_chunk(b"sRGB", b"\0")
WIDE = png_chunk(  # chromaticities of Display P3
    b"cHRM", struct.pack(">8I", 31270, 32900, 68000, 32000, 26500, 69000, 15000, 6000)
)


@pytest.mark.parametrize(
    ("chunks", "space"),
    [
        ([gamma(1.0)], "linear"),
        ([png_chunk(b"cICP", bytes([1, 8, 0, 1])), SRGB_CHUNK], "linear"),
        ([WIDE, gamma(0.45455)], None),
        ([png_chunk(b"cICP", bytes([12, 13, 0, 1]))], None),
    ],
)
def test_gamma_and_chromaticities_of_a_png_are_converted(tmp_path, face, chunks, space):
    got = read(tmp_path, with_chunks(encoded(face, "PNG"), *chunks))
    if space:
        assert abs(got - converted(face, icc_profile(space))).max() <= 1
    else:  # of Display P3 with the curve of sRGB: (200, 100, 100) is (215, 93, 97)
        content = with_chunks(encoded(Image.new("RGB", (2, 2), (200, 100, 100)), "PNG"), *chunks)
        assert read(tmp_path, content)[0, 0].tolist() == [215, 93, 97]
        assert abs(got - np.asarray(face)).max() > 10


@pytest.mark.parametrize(
    "chunks",
    [
        [gamma(0.45455)],
        [gamma(0.45)],
        [SRGB_CHUNK, gamma(1.0), WIDE],
        [png_chunk(b"iCCP", b"sRGB\0\0" + b"damaged"), SRGB_CHUNK, gamma(1.0)],
        [gamma(0.0)],  # these say nothing that can be true
        [gamma(1e-5)],
        [png_chunk(b"gAMA", b"\0")],
        [gamma(1.0)[:-1] + b"!"],  # a wrong checksum
        [png_chunk(b"cHRM", bytes(32))],
        [png_chunk(b"cICP", bytes([250, 13, 0, 1]))],
    ],
)
def test_a_png_that_means_srgb_or_nothing_keeps_its_pixels(tmp_path, face, chunks):
    assert (read(tmp_path, with_chunks(encoded(face, "PNG"), *chunks)) == np.asarray(face)).all()


@pytest.mark.parametrize(
    ("codes", "said"),
    [
        ([9, 16, 0, 1], r"high dynamic range \(PQ\): save it as sRGB"),
        ([9, 18, 0, 1], r"high dynamic range \(HLG\): save it as sRGB"),
        ([1, 13, 0, 0], "narrow range of video: save it with the full range"),
    ],
)
def test_a_high_dynamic_range_is_refused(tmp_path, face, codes, said):
    with pytest.raises(UnreadableImage, match=said):
        read(tmp_path, with_chunks(encoded(face, "PNG"), png_chunk(b"cICP", bytes(codes))))


@pytest.mark.parametrize("form", ["JPEG", "TIFF"])
def test_cmyk_is_converted_by_its_profile(tmp_path, face, form):
    options = {"quality": 95, "subsampling": 0} if form == "JPEG" else {}
    content = encoded(face.convert("CMYK"), form, icc_profile=cmyk_profile(), **options)
    bare = Image.open(io.BytesIO(content))
    expected = converted(bare, cmyk_profile())
    assert abs(read(tmp_path, content) - expected).max() <= 1
    assert abs(expected - np.asarray(bare.convert("RGB"))).mean() > 5


def test_the_transparent_colour_is_found_at_every_depth(tmp_path):
    """Pillow compares 8-bit pixels with a colour of 2 or 16 bits."""
    deep = Image.fromarray(np.array([[0, 500, 65535]], np.uint16))
    got = read(tmp_path, encoded(deep, "PNG", transparency=500))
    assert got[0, :, 0].tolist() == [0, 255, 255]
    header = struct.pack(">IIBBBBB", 4, 1, 2, 0, 0, 0, 0)  # four pixels of two bits: 0 1 2 3
    body = png_chunk(b"tRNS", b"\0\1") + png_chunk(b"IDAT", zlib.compress(b"\0\x1b"))
    png = b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + body + png_chunk(b"IEND", b"")
    assert read(tmp_path, png)[0, :, 0].tolist() == [0, 255, 170, 255]


GREY = np.asarray(crude_face(1, 32).convert("L"))
DEEP = GREY.astype(np.uint16) * 257
RGB = np.asarray(crude_face(1, 32))
LAB = np.asarray(
    ImageCms.profileToProfile(
        crude_face(1, 32), SRGB, ImageCms.createProfile("LAB"), outputMode="LAB"
    )
)
YCC = np.asarray(crude_face(1, 32).convert("YCbCr"))
CMYK = np.asarray(crude_face(1, 32).convert("CMYK"))


def twelve_bits() -> bytes:
    """Pack grey as 12 bits a pixel, two pixels in three bytes."""
    values = GREY.astype(int) * 16 + GREY // 16
    left, right = values[:, ::2], values[:, 1::2]
    packed = [left >> 4, (left & 15) << 4 | right >> 8, right & 255]
    return np.stack(packed, -1).astype(np.uint8).tobytes()


def planes(pixels: np.ndarray) -> list[bytes]:
    return [np.ascontiguousarray(pixels[..., i]).tobytes() for i in range(pixels.shape[-1])]


# Strips, photometric interpretation, bits a channel, further tags, expected pixels.
TIFFS = {
    "white is zero": ([(255 - GREY).tobytes()], 0, (8,), {}, GREY),
    "white is zero, 16 bits": ([(65535 - DEEP).tobytes()], 0, (16,), {}, GREY),
    "black is zero, 16 bits": ([DEEP.tobytes()], 1, (16,), {}, GREY),
    "12 bits": ([twelve_bits()], 1, (12,), {}, GREY),
    "one bit, white is zero": (
        [np.packbits(GREY < 128, axis=1).tobytes()], 0, (1,), {}, (GREY >= 128) * 255,
    ),
    "RGB": ([RGB.tobytes()], 2, (8, 8, 8), {}, RGB),
    "RGB in planes": (planes(RGB), 2, (8, 8, 8), {284: (2,)}, RGB),
    "palette": ([GREY.tobytes()], 3, (8,), {320: tuple(int(x) * 257 for x in RAMP) * 3}, GREY),
    "CMYK": ([CMYK.tobytes()], 5, (8,) * 4, {}, RGB),
    "YCbCr": ([YCC.tobytes()], 6, (8, 8, 8), {530: (1, 1)}, RGB),
    "CIELab": ([LAB.tobytes()], 8, (8, 8, 8), {}, RGB),
}  # fmt: skip
REFUSED = {
    "signed grey": ([GREY.tobytes()], 1, (8,), {339: (2,)}, "signed grey has no known range"),
    "RGB of 16 bits in planes": (
        planes(RGB.astype(np.uint16) * 257), 2, (16,) * 3, {284: (2,)}, "16-bit colours lie in",
    ),
    "YCbCr, fewer colours": ([YCC.tobytes()], 6, (8, 8, 8), {530: (2, 1)}, "YCbCr is not that of"),
    "YCbCr of video": (
        [YCC.tobytes()], 6, (8,) * 3, {530: (1, 1), 532: (16, 235, 128, 240, 128, 240)}, "YCbCr is",
    ),
    "other inks": ([CMYK.tobytes()], 5, (8,) * 4, {332: (2,)}, "its inks are not cyan"),
    "mask": ([GREY.tobytes()], 4, (8,), {}, "of no known format"),
    "ICC Lab": ([LAB.tobytes()], 9, (8, 8, 8), {}, "of no known format"),
}  # fmt: skip


def tiff(path, strips, photometric, bits, more) -> None:
    size = {256: (32,), 257: (32,), 278: (32,)}
    write_tiff(path, strips, {**size, 258: bits, 262: (photometric,), 277: (len(bits),), **more})


@pytest.mark.parametrize("kind", TIFFS)
def test_every_photometric_interpretation_of_a_tiff_gives_its_colours(tmp_path, kind):
    *file, expected = TIFFS[kind]
    tiff(tmp_path / "a.tif", *file)
    if expected.ndim == 2:
        expected = np.repeat(expected[..., None], 3, 2)
    got = np.asarray(load_image(tmp_path / "a.tif")).astype(int)
    assert abs(got - expected).max() <= (4 if kind in ("CIELab", "YCbCr") else 0)


@pytest.mark.parametrize("kind", REFUSED)
def test_pixels_that_would_be_misread_are_refused(tmp_path, kind):
    *file, said = REFUSED[kind]
    tiff(tmp_path / "a.tif", *file)
    with pytest.raises(UnreadableImage, match=said):
        load_image(tmp_path / "a.tif")


def test_a_colour_space_of_jpeg_2000_that_is_not_known_is_refused(tmp_path, face):
    jp2 = encoded(face, "JPEG2000")
    at = jp2.index(b"colr") + 7
    lab = jp2[:at] + struct.pack(">I", 14) + jp2[at + 4 :]
    with pytest.raises(UnreadableImage, match="colour space 14 of JPEG 2000 is not known"):
        read(tmp_path, lab)
