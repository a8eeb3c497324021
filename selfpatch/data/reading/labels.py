"""Masks: the numbers that a PNG file stores, whatever its bit depth; nothing is scaled, blended or turned."""

import io
import warnings
from pathlib import Path

import numpy as np
from jaxtyping import Integer
from PIL import Image

from selfpatch.data.reading.image_file import UnreadableImage, first_line, image_format, read_bytes
from selfpatch.data.reading.png import COLOR_TYPES, GRAY, HEADER_BYTES, PALETTE, PngHeader, png_header, stored_numbers


def read_stored_numbers(path: Path) -> Integer[np.ndarray, "H W"]:
    """Gray levels of 1, 2, 4, 8 or 16 bits, or indices (not colors) of a palette.

    Raises:
        UnreadableImage: not a PNG file by its content, a color picture, or damaged.
    """
    data = read_bytes(path)
    header = _label_header(data)
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            image.load()
            return stored_numbers(image, header.bit_depth)
    except Exception as error:  # decoders raise nearly anything at damaged bytes
        raise UnreadableImage(f"damaged PNG ({first_line(error)})") from error


def stored_size(path: Path) -> tuple[int, int]:
    """(rows, columns) of what `read_stored_numbers` gives, from the header alone: damaged pixels go unnoticed."""
    header = _label_header(read_bytes(path, limit=HEADER_BYTES))
    return header.rows, header.columns


def _label_header(data: bytes) -> PngHeader:
    format_ = image_format(data)
    if format_ == "JPEG":
        raise UnreadableImage("a JPEG file, whose compression changes the numbers; save the original mask as PNG")
    if format_ != "PNG":
        raise UnreadableImage(f"a {format_} file; masks are PNG files")
    header = png_header(data)
    if header.color_type not in (GRAY, PALETTE):
        raise UnreadableImage(
            f"a color picture ({COLOR_TYPES[header.color_type]}); a mask holds one number per pixel: save it as gray "
            "or palette PNG"
        )
    return header
