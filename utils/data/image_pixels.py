"""Pixels of every mode and format that is read become 8-bit sRGB, on white."""

from __future__ import annotations

import numpy as np
from PIL import Image

from utils.data.image_colours import to_srgb

JPEG2000_SPACES = {0, 12, 15, 16, 17, 18}  # that Pillow decodes: bilevel, CMYK, sRGB, grey, sYCC
# Numbers of TIFF's tags (TIFF 6.0, sections 8, 16, 19 to 21).
BITS, COMPRESSION, PHOTOMETRIC, PLANAR, INK_SET, SAMPLE_FORMAT = 258, 259, 262, 284, 332, 339
COEFFICIENTS, SUBSAMPLING, REFERENCE = 529, 530, 532
UNCOMPRESSED, WHITE_IS_ZERO, SIGNED = 1, 0, 2


def to_rgb(image: Image.Image) -> Image.Image:
    """Return a loaded image as 8-bit sRGB, its transparent pixels on white, without information.

    Raises ValueError if the file does not say what its numbers mean, or means what Pillow reads
    as something else.
    """
    _check_meaning(image)
    alpha = None
    if image.mode == "F" or image.mode.startswith("I"):
        colours, alpha = _from_deep_grey(image)
    else:
        if image.mode == "La":
            image = image.convert("LA")
        is_grey = image.mode in ("1", "L", "LA")
        if image.has_transparency_data:
            image = image.convert("RGBA")
            alpha = image.getchannel("A")
        if is_grey:
            image = image.getchannel("R") if alpha else image.convert("L")
        elif image.mode != "CMYK":
            image = image.convert("RGB")
        colours = to_srgb(image)
    result = colours.convert("RGB")
    if alpha:
        result.putalpha(alpha)
        white = Image.new("RGBA", result.size, "white")
        result = Image.alpha_composite(white, result).convert("RGB")
    result.info.clear()
    return result


def _from_deep_grey(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """Return grey of more than 8 bits as 8-bit grey or sRGB, and its alpha if it has any."""
    values, alpha = np.asarray(image).clip(0, 65535), None
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        alpha = Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8))
    if tags := getattr(image, "tag_v2", None):
        if tags.get(BITS) == (12,):
            values = (values * (65535 / 4095)).round()
        if tags.get(PHOTOMETRIC) == WHITE_IS_ZERO:
            values = 65535 - values
    if image.mode.startswith("I;16"):
        deep = Image.fromarray(values.astype(np.uint16))
        deep.info = dict(image.info)
        if (colours := to_srgb(deep)) is not deep:
            return colours, alpha
    # Pillow clips 16-bit grey at 255 where it should scale.
    return Image.fromarray((values / 257 + 0.5).astype(np.uint8)), alpha


def _check_meaning(image: Image.Image) -> None:
    """Raise ValueError for pixels that Pillow reads as something that they are not."""
    space = image.info.get("space")
    if space is not None and space not in JPEG2000_SPACES:
        raise ValueError(f"colour space {space} of JPEG 2000 is not known: save it as sRGB")
    tags = getattr(image, "tag_v2", None)
    if image.format != "TIFF" or tags is None:
        return
    if image.mode in ("F", "I") or max(tags.get(SAMPLE_FORMAT, (1,))) == SIGNED:
        raise ValueError("32-bit or signed grey has no known range: save it as 8 or 16 bits")
    if tags.get(INK_SET, 1) != 1:
        raise ValueError("its inks are not cyan, magenta, yellow and black: save it as RGB")
    if tags.get(COMPRESSION, UNCOMPRESSED) != UNCOMPRESSED:
        return  # libtiff decodes it, and knows more than Pillow
    if tags.get(PLANAR, 1) == 2 and max(tags.get(BITS, (1,))) > 8:
        raise ValueError("16-bit colours lie in separate planes: save it as 8 bits, or compressed")
    if image.mode == "YCbCr":
        expected = {SUBSAMPLING: (1, 1), COEFFICIENTS: (0.299, 0.587, 0.114)}
        expected[REFERENCE] = (0, 255, 128, 255, 128, 255)
        defaults = {**expected, SUBSAMPLING: (2, 2)}
        for tag, values in expected.items():
            if not np.allclose(np.array(tags.get(tag, defaults[tag]), float), values, atol=0.01):
                raise ValueError("its YCbCr is not that of JPEG: save it as RGB")
