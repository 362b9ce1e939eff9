"""Image files as others write them: TIFFs of any kind, profiles, chunks, boxes."""

import io
import itertools
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

# Red, green and blue of some spaces in XYZ, adapted to D50, and the exponent.
SPACES = {
    "Display P3": (
        (0.51512, 0.2412, -0.00105), (0.29198, 0.69225, 0.04189), (0.1571, 0.06657, 0.78407), 2.2,
    ),
    "Adobe RGB": (
        (0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457), 2.2,
    ),
    "ProPhoto": ((0.79767, 0.28804, 0), (0.13519, 0.71188, 0), (0.03134, 0.00009, 0.82491), 1.8),
    "linear": (
        (0.43607, 0.22249, 0.01392), (0.38515, 0.71687, 0.09708), (0.1431, 0.06061, 0.7141), 1.0,
    ),
}  # fmt: skip


def fixed(*numbers: float) -> bytes:
    return b"".join(struct.pack(">i", round(number * 65536)) for number in numbers)


def icc_profile(space: str) -> bytes:
    """Return a profile of a space of RGB; `grey 1.8` is one of grey."""
    name, _, gamma = space.partition(" ")
    tags = {b"wtpt": b"XYZ \0\0\0\0" + fixed(0.9642, 1, 0.8249)}
    if name == "grey":
        tags[b"kTRC"] = _curve(float(gamma))
    else:
        *primaries, exponent = SPACES[space]
        for letter, xyz in zip((b"r", b"g", b"b"), primaries, strict=True):
            tags[letter + b"XYZ"] = b"XYZ \0\0\0\0" + fixed(*xyz)
            tags[letter + b"TRC"] = _curve(exponent)
    return _profile(b"GRAY" if name == "grey" else b"RGB ", b"mntr", b"XYZ ", tags)


def cmyk_profile() -> bytes:
    """Return a profile of a press with pale inks: its table holds Lab colours."""
    corners = np.array(list(itertools.product([0, 1], repeat=4)))  # black changes fastest
    lightness = 255 - corners @ [60, 70, 20, 140]
    fade = 1 - 0.7 * corners[:, 3]
    a, b = fade * (corners @ [-40, 70, -5, 0]), fade * (corners @ [-45, -5, 85, 0])
    lab = np.stack([lightness, 128 + a, 128 + b], 1).clip(0, 255).astype(np.uint8)
    ramp = bytes(range(256))
    table = b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + fixed(1, 0, 0, 0, 1, 0, 0, 0, 1)
    table += 4 * ramp + lab.tobytes() + 3 * ramp
    white = b"XYZ \0\0\0\0" + fixed(0.9642, 1, 0.8249)
    return _profile(b"CMYK", b"prtr", b"Lab ", {b"wtpt": white, b"A2B0": table})


def _profile(colours: bytes, kind: bytes, connection: bytes, tags: dict[bytes, bytes]) -> bytes:
    """Return an ICC profile of version 2."""
    table, data = struct.pack(">I", len(tags)), b""
    for key, content in tags.items():
        table += key + struct.pack(">II", 132 + 12 * len(tags) + len(data), len(content))
        data += content + bytes(-len(content) % 4)
    sizes = struct.pack(">I4xI", 128 + len(table + data), 0x02100000)
    head = sizes + kind + colours + connection + bytes(12) + b"acsp" + bytes(28)
    return (head + fixed(0.9642, 1, 0.8249)).ljust(128, b"\0") + table + data


def _curve(gamma: float) -> bytes:
    return b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256))


def encoded(image: Image.Image, form: str, **options: object) -> bytes:
    """Return the content of an image file."""
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def png_chunk(kind: bytes, data: bytes) -> bytes:
    checksum = struct.pack(">I", zlib.crc32(kind + data))
    return struct.pack(">I", len(data)) + kind + data + checksum


def with_chunks(png: bytes, *chunks: bytes) -> bytes:
    """Return a PNG with more chunks after its header."""
    return png[:33] + b"".join(chunks) + png[33:]


def write_tiff(path: Path, strips: Sequence[bytes], tags: dict[int, tuple[int, ...]]) -> None:
    """Write an uncompressed little-endian TIFF; `tags` are numbers of type LONG."""
    places, data = [], b""
    for strip in strips:
        places.append(8 + len(data))
        data += strip
    tags = {259: (1,), 273: tuple(places), 279: tuple(map(len, strips)), **tags}
    start = 8 + len(data) + len(data) % 2
    more_at = start + 2 + 12 * len(tags) + 4
    directory, more = struct.pack("<H", len(tags)), b""
    for tag, values in sorted(tags.items()):
        packed = struct.pack(f"<{len(values)}I", *values)
        if len(values) > 1:
            packed, more = struct.pack("<I", more_at + len(more)), more + packed
        directory += struct.pack("<HHI4s", tag, 4, len(values), packed)
    head = struct.pack("<2sHI", b"II", 42, start)
    path.write_bytes(head + data + bytes(len(data) % 2) + directory + bytes(4) + more)
