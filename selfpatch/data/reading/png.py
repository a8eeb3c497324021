"""PNG: the stored numbers of gray and palette images at every bit depth, and the one color that may be transparent."""

import io
import struct
import warnings
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Integer, UInt8
from PIL import Image

from selfpatch.data.reading.image_file import UnreadableImage, check_size
from selfpatch.data.reading.pixels import gray_to_rgb, kind_of, orientation_of, to_8_bits, to_rgb, upright

GRAY, RGB, PALETTE = 0, 2, 3
COLOR_TYPES = {GRAY: "gray", RGB: "RGB", PALETTE: "palette", 4: "gray with alpha", 6: "RGB with alpha"}
HEADER_BYTES = 33  # the signature and the chunk IHDR


class PngHeader(NamedTuple):
    columns: int
    rows: int
    bit_depth: int
    color_type: int


def png_header(data: bytes) -> PngHeader:
    """From the first HEADER_BYTES of the file.

    Raises:
        UnreadableImage: no such header, or more pixels than are allowed.
    """
    if len(data) < HEADER_BYTES or data[12:16] != b"IHDR":
        raise UnreadableImage("PNG with a damaged header")
    header = PngHeader(*struct.unpack(">IIBB", data[16:26]))
    if header.color_type not in COLOR_TYPES or header.bit_depth not in (1, 2, 4, 8, 16):
        raise UnreadableImage("PNG with a damaged header or an unusual kind of pixels")
    check_size(header.rows, header.columns)
    return header


def read_png(data: bytes) -> tuple[UInt8[np.ndarray, "H W 3"], str]:
    """Pixels, upright, and their kind; of an animation the first frame."""
    header = png_header(data)
    # Pillow warns of odd metadata and of sizes that png_header judges.
    with warnings.catch_warnings(action="ignore"), Image.open(io.BytesIO(data), formats=["PNG"]) as image:
        image.load()
        transparent = image.info.get("transparency")
        if header.color_type == GRAY and transparent is not None:
            stored = stored_numbers(image, header.bit_depth)
            gray = to_8_bits(stored, header.bit_depth)
            gray[stored == transparent] = 255
            pixels = gray_to_rgb(gray)
        elif header.color_type == RGB and header.bit_depth == 16 and transparent is not None:
            pixels = _read_deep_rgb(data)
        else:
            pixels = to_rgb(image)
        return upright(pixels, orientation_of(image)), kind_of(image)


def stored_numbers(image: Image.Image, bit_depth: int) -> Integer[np.ndarray, "H W"]:
    """Of a gray or palette image: Pillow multiplies gray of 2 and 4 bits, so that white is 255."""
    numbers = np.asarray(image)
    if image.mode == "L" and bit_depth < 8:
        return numbers // (255 // (2**bit_depth - 1))
    return numbers.astype(np.uint8) if image.mode == "1" else numbers


def _read_deep_rgb(data: bytes) -> UInt8[np.ndarray, "H W 3"]:
    """16 bits per channel with one transparent color: Pillow keeps 8 bits, which do not tell it from its neighbors."""
    bgra = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED | cv2.IMREAD_IGNORE_ORIENTATION)
    if bgra is None or bgra.dtype != np.uint16 or bgra.shape[2:] != (4,):
        raise UnreadableImage("damaged PNG")
    pixels = to_8_bits(bgra[..., 2::-1], 16)
    pixels[bgra[..., 3] == 0] = 255
    return pixels
