"""From the pixels of a decoded file to 8-bit RGB as people see them: depth, transparency, color, orientation."""

import numpy as np
from jaxtyping import Integer, Real, UInt8
from PIL import Image

from selfpatch.data.reading.image_file import UnreadableImage

_EXIF_ORIENTATION = 0x0112
_KINDS = {"RGB": "color", "L": "gray", "1": "black and white", "P": "palette", "CMYK": "CMYK", "YCbCr": "color"}


def to_8_bits(samples: Integer[np.ndarray, "*shape"], num_bits: int) -> UInt8[np.ndarray, "*shape"]:
    """0 to 2**num_bits - 1 becomes 0 to 255, rounded to the nearest."""
    return np.rint(samples * (255 / (2**num_bits - 1))).astype(np.uint8)


def gray_to_rgb(gray: UInt8[np.ndarray, "H W"]) -> UInt8[np.ndarray, "H W 3"]:
    return np.repeat(gray[..., None], 3, axis=-1)


def to_rgb(image: Image.Image) -> UInt8[np.ndarray, "H W 3"]:
    """Transparent parts show white; gray becomes three equal channels."""
    if image.mode.startswith("I;16"):
        return gray_to_rgb(to_8_bits(np.asarray(image), 16))
    if image.mode in ("I", "F"):
        raise UnreadableImage(
            "signed, 32-bit or floating-point pixels, whose range is not known; convert them to 8 or 16 bits"
        )
    if image.mode == "LAB":
        raise UnreadableImage("CIELAB colors; convert them to RGB")
    if image.has_transparency_data:
        image = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.array(image.convert("RGB"))  # a copy: Pillow's own memory is read-only, which torch warns of


def kind_of(image: Image.Image) -> str:
    if image.mode.startswith("I;16"):
        return "16-bit gray"
    return "with transparency" if image.has_transparency_data else _KINDS.get(image.mode, image.mode)


def orientation_of(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_EXIF_ORIENTATION, 1))
    except Exception:  # as many kinds as for damaged pixels; but these pixels are good
        return 1


def upright(pixels: Real[np.ndarray, "H W C"], orientation: int) -> Real[np.ndarray, "R S C"]:
    """Undo an EXIF orientation: 1 to 8, others mean nothing."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)
