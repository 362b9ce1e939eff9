"""The meaning of an image's colours: profiles, gamma and the like become sRGB on reading.

What a file says about its colours counts in the order of the PNG specification: coding-independent
code points (cICP, nclx), an ICC profile, the mark "this is sRGB", then gamma and chromaticities. A
profile that is damaged, or belongs to other kinds of pixels, is ignored, as other readers do.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image, ImageCms

SRGB = (0.3127, 0.3290, 0.64, 0.33, 0.30, 0.60, 0.15, 0.06)  # white, red, green, blue: x, y
D50 = np.array([0.9642, 1.0, 0.8249])  # white of ICC profiles, XYZ
BRADFORD = np.array(
    [[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]]
)
SRGB_CURVE = (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)  # IEC 61966-2-1, in ICC's order
GAMMAS = (0.1, 10.0)  # exponents outside are damage

# Chromaticities and transfer functions by their numbers in ITU-T H.273.
D65 = SRGB[:2]
CHROMATICITIES = {
    1: SRGB,
    5: (*D65, 0.64, 0.33, 0.29, 0.60, 0.15, 0.06),
    6: (*D65, 0.630, 0.340, 0.310, 0.595, 0.155, 0.070),
    7: (*D65, 0.630, 0.340, 0.310, 0.595, 0.155, 0.070),
    9: (*D65, 0.708, 0.292, 0.170, 0.797, 0.131, 0.046),
    11: (0.314, 0.351, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060),
    12: (*D65, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060),
}
# The curves of video are shown as sRGB by what reads images.
EXPONENTS: dict[int, float | None] = {1: None, 6: None, 13: None, 14: None, 15: None}
EXPONENTS |= {4: 2.2, 5: 2.8, 8: 1.0}
HIGH_DYNAMIC_RANGE = {16: "PQ", 18: "HLG"}


def to_srgb(image: Image.Image) -> Image.Image:
    """Return an image whose colours are sRGB: 8-bit grey, RGB, or the same image if it says so.

    Its mode is one of L, I;16, RGB, CMYK. Raises ValueError for a high dynamic range.
    """
    for profile in _profiles(image.info, is_grey=image.mode in ("L", "I;16")):
        transform = _transform(profile, image.mode)
        if transform == "unusable" and image.mode == "L":  # a grey photo may hold a profile of RGB
            image_in_rgb = image.convert("RGB")
            transform = _transform(profile, "RGB")
            if isinstance(transform, ImageCms.ImageCmsTransform):
                return transform.apply(image_in_rgb)
        if transform == "same":
            return image
        if isinstance(transform, ImageCms.ImageCmsTransform):
            return transform.apply(image)
    return image


def _profiles(info: Mapping[Any, Any], is_grey: bool) -> Iterator[bytes]:
    """Yield the ICC profiles that a file's information means, the one that counts first."""
    if found := _of_code_points(info.get("cicp"), is_grey):
        yield found
    if isinstance(profile := info.get("icc_profile"), bytes) and profile:
        yield profile
    if "srgb" in info:
        return
    gamma, chromaticity = info.get("gamma"), info.get("chromaticity")
    if gamma or chromaticity:
        # A gamma within 5 % of 1 / 2.2 means sRGB, as in libpng.
        exponent = None if not gamma or abs(gamma * 2.2 - 1) < 0.05 else 1 / gamma
        if found := _make_profile(chromaticity or SRGB, exponent, is_grey):
            yield found


def _of_code_points(codes: Sequence[int] | None, is_grey: bool) -> bytes | None:
    """Return the profile of H.273's numbers (primaries, transfer, …); None if they mean nothing.

    Raises ValueError for a high dynamic range, which does not fit into sRGB.
    """
    if not codes:
        return None
    if name := HIGH_DYNAMIC_RANGE.get(codes[1]):
        raise ValueError(f"its colours have a high dynamic range ({name}): save it as sRGB")
    if codes[3:] == (0,):
        raise ValueError("its pixels have the narrow range of video: save it with the full range")
    if codes[0] not in CHROMATICITIES or codes[1] not in EXPONENTS:
        return None
    return _make_profile(CHROMATICITIES[codes[0]], EXPONENTS[codes[1]], is_grey)


def _make_profile(
    chromaticity: Sequence[float], exponent: float | None, is_grey: bool
) -> bytes | None:
    """Return an ICC profile; None for values that are no colours.

    chromaticity: x and y of white, red, green and blue.
    exponent: of the transfer function; None = that of sRGB.
    """
    if exponent is not None and not GAMMAS[0] <= exponent <= GAMMAS[1]:
        return None
    curve = SRGB_CURVE if exponent is None else (exponent,)
    kind = 3 if exponent is None else 0
    transfer = b"para" + struct.pack(">4xHH", kind, 0) + _fixed(curve)
    if is_grey:
        return _profile_file(b"GRAY", {b"kTRC": transfer})
    xy = np.array(chromaticity, np.float64).reshape(4, 2)
    if not (np.isfinite(xy).all() and (xy[:, 1] > 0).all()):
        return None
    xyz = np.stack([xy[:, 0] / xy[:, 1], np.ones(4), (1 - xy.sum(1)) / xy[:, 1]])  # columns
    white, primaries = xyz[:, 0], xyz[:, 1:]
    if abs(np.linalg.det(primaries)) < 1e-6:
        return None
    adapt = np.linalg.inv(BRADFORD) @ np.diag(BRADFORD @ D50 / (BRADFORD @ white)) @ BRADFORD
    colorants = adapt @ (primaries * np.linalg.solve(primaries, white))
    if not (abs(colorants) < 100).all():
        return None
    tags = {}
    for letter, colorant in zip((b"r", b"g", b"b"), colorants.T, strict=True):
        tags[letter + b"XYZ"] = b"XYZ \0\0\0\0" + _fixed(colorant)
        tags[letter + b"TRC"] = transfer
    return _profile_file(b"RGB ", tags)


def _fixed(numbers: Sequence[float] | np.ndarray) -> bytes:
    """Return numbers as ICC's s15Fixed16."""
    return b"".join(struct.pack(">i", round(number * 65536)) for number in numbers)


def _profile_file(space: bytes, tags: Mapping[bytes, bytes]) -> bytes:
    """Return an ICC profile of version 4 with the given tags (ICC.1:2010, 7.2 and 7.3)."""
    tags = {b"wtpt": b"XYZ \0\0\0\0" + _fixed(D50), **tags}
    table, data = struct.pack(">I", len(tags)), b""
    for name, content in tags.items():
        place = 128 + 4 + 12 * len(tags) + len(data)
        table += name + struct.pack(">II", place, len(content))
        data += content + bytes(-len(content) % 4)
    size = 128 + len(table) + len(data)
    head = struct.pack(">I4xI4s4s4s12x4s", size, 0x04300000, b"mntr", space, b"XYZ ", b"acsp")
    return head.ljust(68, b"\0") + _fixed(D50).ljust(60, b"\0") + table + data


@lru_cache(maxsize=32)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | str:
    """Return the transform of a profile to sRGB: "same" if it changes nothing, or "unusable"."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        target = ImageCms.createProfile("sRGB")
        if source.profile.device_class not in ("mntr", "scnr", "prtr", "spac"):
            return "unusable"
        # Absolute colours decide whether this is sRGB: the perceptual intent of some sRGB profiles
        # is a matter of taste.
        colorimetric = ImageCms.Intent.RELATIVE_COLORIMETRIC
        probe, as_srgb = _probe(mode)
        if as_srgb is not None:
            build = ImageCms.buildTransform(source, target, mode, "RGB", colorimetric)
            difference = np.asarray(build.apply(probe)).astype(int) - np.asarray(as_srgb)
            if abs(difference).max() <= 1:
                return "same"
        return ImageCms.buildTransform(source, target, mode, "RGB")
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return "unusable"


def _probe(mode: str) -> tuple[Image.Image, Image.Image | None]:
    """Return colours of a mode, and the same in RGB if the mode has the colours of sRGB."""
    ramp = np.arange(256, dtype=np.uint8)[None]
    if mode == "RGB":
        steps = np.linspace(0, 255, 9).round().astype(np.uint8)
        cube = np.stack(np.meshgrid(steps, steps, steps), -1).reshape(1, -1, 3)
        image = Image.fromarray(np.concatenate([cube, np.repeat(ramp[..., None], 3, 2)], 1))
        return image, image
    grey = Image.fromarray(ramp)
    if mode == "I;16":
        return Image.fromarray(ramp.astype(np.uint16) * 257), grey.convert("RGB")
    return grey, grey.convert("RGB") if mode == "L" else None
