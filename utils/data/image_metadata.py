"""Image files taken apart: the part that holds pixels, and what else counts for reading them.

Pillow parses all that a file says, and refuses a good image for a broken note beside its pixels, a
long text or a large profile. So it gets the pixels alone. From the rest, only orientation and
colours count; whatever cannot be read there is ignored. Nothing here raises.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Collection, Iterator
from typing import Any

PNG, JPEG2000 = b"\x89PNG\r\n\x1a\n", b"\0\0\0\x0cjP  \r\n\x87\n"
TIFFS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
MOST_BYTES = 1 << 26  # of a text or a profile, unfolded
ORIENTATION = 0x0112
# Tags of a TIFF that describe its pixels (TIFF 6.0, and its supplements for JPEG and deflate).
PIXEL_TAGS = {
    254, 255, 256, 257, 258, 259, 262, 266, 273, 277, 278, 279, 284, 292, 293, 317, 320, 322, 323,
    324, 325, 332, 338, 339, 347, 512, 513, 514, 515, 517, 518, 519, 520, 521, 529, 530, 531, 532,
    48129, 50674,
}  # fmt: skip
TIFF_PROFILE = 34675
RAW_EXIF, XMP = "Raw profile type exif", "XML:com.adobe.xmp"  # texts of a PNG
NOTES = ("exif", "xmp", RAW_EXIF, XMP)  # what may state the orientation
XMP_ORIENTATION = re.compile(rb'tiff:Orientation(?:="|>)([1-8])')


def take_apart(content: bytes) -> tuple[bytes, dict[str, Any]]:
    """Return a file with its pixels alone, and the rest that counts, under Pillow's names.

    The names are icc_profile, gamma, chromaticity, srgb and transparency; ours are `orientation`,
    1 to 8, `cicp`, the numbers of H.273, and `space`, the colour space of JPEG 2000. A file of
    another format, or one too damaged, is returned whole.
    """
    pixels, found = _take_apart(content)
    stated = orientation_of(found)
    return pixels, {k: v for k, v in found.items() if k not in NOTES} | {"orientation": stated}


def _take_apart(content: bytes) -> tuple[bytes, dict[str, Any]]:
    try:
        if content.startswith(PNG):
            return _png(content)
        if content.startswith(b"\xff\xd8\xff"):
            return _jpeg(content)
        if content.startswith(TIFFS):
            return _tiff(content)
        if content.startswith(b"GIF8"):
            return _gif(content)
        if content.startswith(JPEG2000):
            return _jpeg2000(content)
        if content[4:8] == b"ftyp":
            return _avif(content)
        if content.startswith(b"BM"):
            return content, _bmp(content)
    except (struct.error, IndexError, ValueError, zlib.error):
        pass
    return content, {}


def orientation_of(info: dict[Any, Any]) -> int | None:
    """Return the orientation, 1 to 8, that EXIF or XMP states; None if neither does."""
    exif = info.get("exif")
    if exif is None and isinstance(raw := info.get(RAW_EXIF), str):  # ImageMagick's
        try:
            exif = bytes.fromhex("".join(raw.split("\n")[3:]))
        except ValueError:
            exif = None
    if isinstance(exif, bytes):
        exif = exif.removeprefix(b"Exif\0\0")
        for tag, kind, count, value in _tiff_entries(exif):
            if tag == ORIENTATION and count == 1 and kind in (1, 3, 4):
                value = value[: {1: 1, 3: 2, 4: 4}[kind]]
                number = int.from_bytes(value, "little" if exif.startswith(b"I") else "big")
                if 1 <= number <= 8:
                    return number
    xmp = info.get("xmp") or info.get(XMP) or b""
    found = XMP_ORIENTATION.search(xmp.encode() if isinstance(xmp, str) else xmp)
    return int(found[1]) if found else None


def texts_of_png(content: bytes, keywords: Collection[str] | None = None) -> dict[str, str]:
    """Return the texts of a PNG that can be read, by keyword; `keywords` = the wanted ones."""
    found: dict[str, str] = {}
    for kind, data, _ in _png_chunks(content) if content.startswith(PNG) else ():
        if kind not in (b"tEXt", b"zTXt", b"iTXt"):
            continue
        try:
            name, rest = data.split(b"\0", 1)
            if (key := name.decode("latin-1")) not in (keywords or (key,)):
                continue
            if kind == b"tEXt":
                text = rest.decode("latin-1")
            elif kind == b"zTXt":
                text = _unfold(rest[1:]).decode("latin-1")
            else:
                translated = rest[2:].split(b"\0", 2)[2]
                text = (_unfold(translated) if rest[0] else translated).decode("utf-8")
            found[key] = text
        except (ValueError, IndexError, zlib.error):
            continue
    return found


def _unfold(content: bytes) -> bytes:
    """Decompress a text or profile; raise ValueError if it is no longer one of a sensible size."""
    unfolding = zlib.decompressobj()
    plain = unfolding.decompress(content, MOST_BYTES)
    if unfolding.unconsumed_tail:
        raise ValueError("too large")
    return plain


def _png_chunks(content: bytes) -> Iterator[tuple[bytes, bytes, slice]]:
    """Yield name, data and place of each chunk of a PNG up to its end or to the first damage."""
    at = len(PNG)
    while at + 12 <= len(content):
        length, kind = struct.unpack_from(">I4s", content, at)
        place = slice(at, at + 12 + length)
        if place.stop > len(content):
            return
        yield kind, content[at + 8 : place.stop - 4], place
        if kind == b"IEND":
            return
        at = place.stop


def _png(content: bytes) -> tuple[bytes, dict[str, Any]]:
    """Take a PNG apart (PNG 3rd edition, section 11)."""
    found: dict[str, Any] = {}
    kept, at, header = [PNG], len(PNG), b""
    for kind, data, place in _png_chunks(content):
        at = place.stop
        if kind in (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"):
            kept.append(content[place])
        elif zlib.crc32(kind + data) == int.from_bytes(content[place][-4:], "big"):
            _add_png_fact(found, kind, data)
        if kind == b"IHDR":
            header = data
        if kind == b"tRNS" and (colour := _png_transparency(header, data)) is not None:
            found["transparency"] = colour
    kept.append(content[at:])  # what is cut off; nothing after a whole file's end matters
    return b"".join(kept), found | texts_of_png(content, (RAW_EXIF, XMP))


def _add_png_fact(found: dict[str, Any], kind: bytes, data: bytes) -> None:
    """Add what a chunk about orientation or colours says, if it can be read."""
    try:
        if kind == b"eXIf":
            found["exif"] = data
        elif kind == b"iCCP":
            name_end = data.index(b"\0")
            found["icc_profile"] = _unfold(data[name_end + 2 :])
        elif kind == b"gAMA":
            found["gamma"] = struct.unpack(">I", data)[0] / 100_000
        elif kind == b"cHRM":
            found["chromaticity"] = tuple(x / 100_000 for x in struct.unpack(">8I", data))
        elif kind == b"sRGB":
            found["srgb"] = data[0]
        elif kind == b"cICP" and len(data) == 4 and data[2] == 0:
            found["cicp"] = tuple(data)
    except (ValueError, IndexError, struct.error, zlib.error):
        pass


def _png_transparency(header: bytes, data: bytes) -> int | tuple[int, ...] | None:
    """Return the transparent colour as 8-bit pixels hold it, where Pillow takes the file's bits."""
    bits, colour_type = header[8], header[9]
    if colour_type == 0 and bits in (2, 4):
        return int.from_bytes(data[:2], "big") * 255 // (2**bits - 1)
    if colour_type == 2 and bits == 16:
        return tuple(data[0:6:2])
    return None


def _jpeg(content: bytes) -> tuple[bytes, dict[str, Any]]:
    """Take a JPEG apart: of its APPn segments only those that libjpeg reads stay."""
    found: dict[str, Any] = {}
    kept, profile, at = [content[:2]], [], 2
    while at + 4 <= len(content) and content[at] == 0xFF:
        marker, length = struct.unpack_from(">xBH", content, at)
        if marker == 0xFF:  # padding
            at += 1
            continue
        if marker == 0xDA or marker < 0xC0 or 0xD0 <= marker <= 0xD9 or length < 2:
            break
        segment = content[at : at + 2 + length]
        data = segment[4:]
        is_note = 0xE0 <= marker <= 0xEF or marker == 0xFE
        is_jfif = marker == 0xE0 and data.startswith(b"JFIF\0") and len(data) >= 14
        is_adobe = marker == 0xEE and data.startswith(b"Adobe") and len(data) >= 12
        if not is_note or is_jfif or is_adobe:
            kept.append(segment)
        elif marker == 0xE1 and data.startswith(b"Exif\0\0"):
            found["exif"] = found.get("exif", b"") + data[6:]
        elif marker == 0xE1 and data.startswith(b"http://ns.adobe.com/xap/1.0/\0"):
            found["xmp"] = data
        elif marker == 0xE2 and data.startswith(b"ICC_PROFILE\0") and len(data) > 14:
            profile.append(data[12:])
        at += 2 + length
    profile.sort()
    if profile and profile[0][1] == len(profile):
        found["icc_profile"] = b"".join(part[2:] for part in profile)
    return b"".join([*kept, content[at:]]), found


def _tiff_entries(content: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """Yield tag, type, count and value (or its place) of a TIFF's first directory."""
    order = "<" if content.startswith(b"I") else ">"
    is_big = content[2:4] in (b"+\0", b"\0+")
    try:
        if is_big:
            (at,) = struct.unpack_from(f"{order}8xQ", content)
            (count,) = struct.unpack_from(f"{order}Q", content, at)
            entry, at = struct.Struct(f"{order}HHQ8s"), at + 8
        else:
            (at,) = struct.unpack_from(f"{order}4xI", content)
            (count,) = struct.unpack_from(f"{order}H", content, at)
            entry, at = struct.Struct(f"{order}HHI4s"), at + 2
        for number in range(min(count, 65535)):
            yield entry.unpack_from(content, at + number * entry.size)
    except struct.error:
        return


def _tiff(content: bytes) -> tuple[bytes, dict[str, Any]]:
    """Take a TIFF apart: give it a new directory, of the first image and of its pixels alone."""
    entries = list(_tiff_entries(content))
    found: dict[str, Any] = {"exif": content}  # both have the form of a TIFF
    order = "<" if content.startswith(b"I") else ">"
    is_big = content[2:4] in (b"+\0", b"\0+")
    form, width, head = ("HHQ8s", "Q", 8) if is_big else ("HHI4s", "I", 4)
    kept = [entry for entry in entries if entry[0] in PIXEL_TAGS]
    for tag, _, count, value in entries:
        if tag == TIFF_PROFILE and count > len(value):
            (start,) = struct.unpack(f"{order}{width}", value)
            found["icc_profile"] = content[start : start + count]
    place = len(content) + len(content) % 2
    directory = struct.pack(f"{order}{'Q' if is_big else 'H'}", len(kept))
    directory += b"".join(struct.pack(f"{order}{form}", *entry) for entry in kept)
    directory += struct.pack(f"{order}{width}", 0)
    begin = content[:head] + struct.pack(f"{order}{width}", place)
    body = content[len(begin) :] + bytes(place - len(content))
    return begin + body + directory, found


def _gif(content: bytes) -> tuple[bytes, dict[str, Any]]:
    """Take a GIF apart: comments and applications' blocks before the first image go."""
    at = 13 + (3 << (content[10] & 7) + 1 if content[10] & 128 else 0)
    kept, found = [content[:at]], {}
    while content[at : at + 1] == b"!":
        start, label, blocks = at, content[at + 1], []
        at += 2
        while length := content[at]:
            blocks.append(content[at + 1 : at + 1 + length])
            at += 1 + length
        at += 1
        if label == 0xF9 and blocks and len(blocks[0]) == 4:
            kept.append(content[start:at])
        elif label == 0xFF and blocks and blocks[0] == b"ICCRGBG1012":
            found["icc_profile"] = b"".join(blocks[1:])
    return b"".join([*kept, content[at:]]), found


def _boxes(content: bytes, start: int, stop: int) -> Iterator[tuple[bytes, int, int, int]]:
    """Yield name, start, start of the data, and end of each box of JPEG 2000 or AVIF."""
    while start + 8 <= stop:
        length, kind = struct.unpack_from(">I4s", content, start)
        data = start + 8
        if length == 1:
            (length,) = struct.unpack_from(">Q", content, data)
            data += 8
        end = stop if length == 0 else start + length
        if not data <= end <= stop:
            return
        yield kind, start, data, end
        start = end


def _jpeg2000(content: bytes) -> tuple[bytes, dict[str, Any]]:
    """Take a JP2 apart: its header keeps only what describes pixels (ISO 15444-1, annex I)."""
    kept, found, stopped = [], {}, 0
    for kind, start, data, end in _boxes(content, 0, len(content)):
        stopped = end
        if kind == b"jp2h":
            header = b""
            for inner, first, inside, last in _boxes(content, data, end):
                if inner in (b"ihdr", b"bpcc", b"colr", b"pclr", b"cmap", b"cdef"):
                    header += content[first:last]
                if inner == b"colr" and "space" not in found and "icc_profile" not in found:
                    if content[inside] == 1:
                        (found["space"],) = struct.unpack_from(">3xI", content, inside)
                    elif content[inside] in (2, 3):
                        found["icc_profile"] = content[inside + 3 : last]
            kept.append(struct.pack(">I4s", 8 + len(header), kind) + header)
        elif kind in (b"jP  ", b"ftyp", b"jp2c"):
            kept.append(content[start:end])
    return b"".join([*kept, content[stopped:]]), found


def _avif(content: bytes) -> tuple[bytes, dict[str, Any]]:
    """Take an AVIF apart: hide its EXIF, whose orientation does not count beside the file's own."""
    found: dict[str, Any] = {}
    meta = next((box for box in _boxes(content, 0, len(content)) if box[0] == b"meta"), None)
    if meta is None:
        return content, found
    _, start, _, end = meta
    described = content[start:end]
    # A box `infe` names the type of an item, after its number and protection.
    hidden = re.sub(rb"(infe\x02.{7})Exif", rb"\1skip", described, flags=re.DOTALL)
    codes = re.search(rb"colrnclx(.{4})", described, re.DOTALL)
    if codes and not re.search(rb"colr(prof|rICC)", described):  # a profile says more
        found["cicp"] = struct.unpack(">2H", codes[1])
    return content[:start] + hidden + content[end:], found


def _bmp(content: bytes) -> dict[str, Any]:
    """Return the profile that a BMP of version 5 holds (BITMAPV5HEADER)."""
    size, space, place, length = struct.unpack_from("<I52xI52xII", content, 14)
    if size >= 124 and space == int.from_bytes(b"MBED", "big"):
        return {"icc_profile": content[14 + place : 14 + place + length]}
    return {}
