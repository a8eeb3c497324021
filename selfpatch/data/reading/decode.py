"""An image file becomes pixels, mostly 8-bit RGB, or is refused with a reason; nothing in between."""

import io
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Real, UInt8
from PIL import Image, UnidentifiedImageError

from selfpatch.config import RGB_8, PixelFormat
from selfpatch.data.reading.image_file import (
    FORMATS_TEXT,
    MAX_PIXELS,
    UnreadableImage,
    check_size,
    first_line,
    image_format,
    read_bytes,
)
from selfpatch.data.reading.jpeg import jpeg_orientation, jpeg_size, read_jpeg
from selfpatch.data.reading.pixels import kind_of, orientation_of, to_rgb, upright
from selfpatch.data.reading.png import read_png
from selfpatch.data.reading.stored import decode_stored, open_stored, read_header, to_pixels
from selfpatch.data.reading.tiff import read_tiff, tiff_size

# Enough for the header of nearly every file; where it is not, the whole file is read.
_HEADER_BYTES = 2**17


class DecodedImage(NamedTuple):
    """The pixels of an image, and how they were stored.

    Args:
        format: "JPEG", "PNG", "WEBP", "TIFF", "BMP" or "GIF", by its content.
        kind: "color", "gray", "16-bit gray", "palette", "with transparency", ...
        warning: the decoder's, of a file whose pixels are all there; else "".
    """

    pixels: UInt8[np.ndarray, "H W 3"]
    format: str
    kind: str
    warning: str = ""


def read_image(path: Path, pixels: PixelFormat = RGB_8) -> Real[np.ndarray, "H W C"]:
    """The pixels of an image file as people see it; the format is recognized by its content, not by its name.

    As 8-bit RGB, unless another format of pixels is asked for, which keeps channels and depth (stored.py). Then:

    - Turned upright as its EXIF orientation says.
    - Transparent parts show white: what was cut out is mostly shown on white, and black would swallow dark drawings.
    - Samples of more than 8 bits are scaled by their own depth: 65535 -> 255, 4095 -> 255 (within one level).
    - Gray becomes three equal channels; palettes and CMYK are converted; of several frames or pages the first counts.

    A file that ends too early or is damaged where its decoder can tell is refused: half an image is no image. A file
    whose pixels are all there is an image, whatever else its decoder warns of. docs/data.md has the table of formats.

    Raises:
        UnreadableImage: for whatever reason there are no such pixels, a file that cannot be opened included.
    """
    return read_pixels(read_bytes(path), pixels)


def read_pixels(data: bytes, pixels: PixelFormat = RGB_8) -> Real[np.ndarray, "H W C"]:
    """As `read_image`, of a file's content."""
    return decode_image(data).pixels if pixels.is_8_bit_rgb else decode_stored(data, pixels)


def decode_image(data: bytes) -> DecodedImage:
    """The content of an image file, as `read_image` describes it."""
    format_ = image_format(data)
    try:
        if format_ == "JPEG":
            pixels, kind, warning = read_jpeg(data)
            return DecodedImage(upright(pixels, jpeg_orientation(data)), format_, kind, warning)
        if format_ == "PNG":
            pixels, kind = read_png(data)
        elif format_ == "TIFF":
            pixels, kind = read_tiff(data)
        elif format_ in ("NPY", "NPZ"):
            stored = open_stored(data)
            pixels, kind = _as_rgb(to_pixels(stored, stored.load(), PixelFormat(stored.num_channels))), stored.kind
        else:
            pixels, kind = _read_with_pillow(data, format_)
        return DecodedImage(pixels, format_, kind)
    except UnreadableImage:
        raise
    except Image.DecompressionBombError as error:
        raise UnreadableImage(f"more than {MAX_PIXELS:,} pixels") from error
    except UnidentifiedImageError as error:
        raise UnreadableImage(f"{format_} with a damaged header or an unusual kind of pixels") from error
    except Exception as error:  # decoders raise nearly anything at damaged bytes, from SyntaxError to struct.error
        raise UnreadableImage(f"damaged {format_} ({first_line(error)})") from error


def read_size(path: Path, pixels: PixelFormat = RGB_8) -> tuple[int, int]:
    """(rows, columns) of what `read_image` gives, from the header alone: damaged pixels go unnoticed.

    Raises:
        UnreadableImage: there is no such header.
    """
    if not pixels.is_8_bit_rgb:
        return read_header(path, pixels.pages).size
    head = read_bytes(path, limit=_HEADER_BYTES)
    format_ = image_format(head)
    try:
        rows, columns = _size(head, format_)
    except Exception:  # a long profile or a TIFF's directory behind its pixels
        try:
            rows, columns = _size(read_bytes(path), format_)
        except Exception as error:  # as many kinds as for damaged pixels
            raise UnreadableImage(f"no header of a {FORMATS_TEXT} file ({first_line(error)})") from error
    check_size(rows, columns)
    return rows, columns


def _size(data: bytes, format_: str) -> tuple[int, int]:
    if format_ == "JPEG":
        if (size := jpeg_size(data)) is None:
            raise ValueError("no frame header")
        return size
    if format_ == "TIFF":
        return tiff_size(data)
    if format_ in ("NPY", "NPZ"):
        return open_stored(data).size
    with warnings.catch_warnings(action="ignore"), Image.open(io.BytesIO(data), formats=[format_]) as image:
        turned = orientation_of(image) in (5, 6, 7, 8)
        return (image.width, image.height) if turned else (image.height, image.width)


def _as_rgb(pixels: UInt8[np.ndarray, "H W C"]) -> UInt8[np.ndarray, "H W 3"]:
    if pixels.shape[2] not in (1, 3):
        raise UnreadableImage(f"{pixels.shape[2]} channels, which 8-bit RGB cannot hold")
    return np.ascontiguousarray(np.broadcast_to(pixels, (*pixels.shape[:2], 3)))


def _read_with_pillow(data: bytes, format_: str) -> tuple[UInt8[np.ndarray, "H W 3"], str]:
    """WebP, BMP and GIF, of which nothing has to be done that Pillow does not do."""
    # Pillow warns of odd metadata and of sizes that check_size judges.
    with warnings.catch_warnings(action="ignore"), Image.open(io.BytesIO(data), formats=[format_]) as image:
        check_size(image.height, image.width)
        image.load()
        return upright(to_rgb(image), orientation_of(image)), kind_of(image)
