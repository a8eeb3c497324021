"""The numbers that an image file stores: any count of channels, at full depth, before a depth is chosen for a run.

`read_image` of 8-bit RGB does not come here; see decode.py.
"""

import io
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

import cv2
import numpy as np
from jaxtyping import Real
from PIL import Image

from selfpatch.config import PixelFormat
from selfpatch.config.pixel_format import MAX_CHANNELS
from selfpatch.data.reading.image_file import (
    MAX_PIXELS,
    UnreadableImage,
    check_size,
    first_line,
    image_format,
    read_bytes,
)
from selfpatch.data.reading.numpy_file import open_numpy
from selfpatch.data.reading.pixels import kind_of, orientation_of, upright
from selfpatch.data.reading.png import HEADER_BYTES, png_header
from selfpatch.data.reading.tiff_array import open_tiff

Stored = Real[np.ndarray, "H W C"]
Alpha = Literal["", "straight", "premultiplied"]
# Channels of Pillow's modes; others are converted to RGB.
_BANDS = {"L": 1, "LA": 2, "RGB": 3, "RGBA": 4}


class StoredImage(NamedTuple):
    """What the header of a file says, and how its numbers are read.

    Args:
        size: (rows, columns), upright.
        num_channels: alpha included.
        number: "unsigned", "signed" or "float".
        num_bits: of unsigned and signed ones.
        kind: in words, such as "16-bit gray".
    """

    format: str
    size: tuple[int, int]
    num_channels: int
    number: str
    num_bits: int
    alpha: Alpha
    kind: str
    load: Callable[[], Stored]

    @property
    def num_colors(self) -> int:
        """Channels besides alpha."""
        return self.num_channels - bool(self.alpha)

    @property
    def is_plain(self) -> bool:
        """True if 8-bit RGB holds all of it: gray or color of at most 8 bits."""
        return self.number == "unsigned" and self.num_bits <= 8 and self.num_colors in (1, 3)


def open_stored(data: bytes, pages: str = "auto") -> StoredImage:
    """Read the header of an image file; its numbers are read by `load`.

    Raises:
        UnreadableImage: no image, or of a kind whose numbers cannot be told apart.
    """
    format_ = image_format(data)
    if format_ in ("NPY", "NPZ"):
        size, number, num_bits, load = open_numpy(data, format_)
        stored = StoredImage(format_, size[:2], size[2], number, num_bits, "", "", load)
    elif format_ == "TIFF":
        found = open_tiff(data, pages)
        if found is None:  # palettes, CMYK, JPEG inside of TIFF, ...: what Pillow knows
            stored = _open_with_pillow(data, format_)
        else:
            stored = StoredImage(format_, *found[:-1], "", found.load)
    elif format_ == "PNG" and png_header(data[:HEADER_BYTES]).bit_depth == 16:
        stored = _open_deep_png(data)
    else:
        stored = _open_with_pillow(data, format_)
    check_size(*stored.size)
    if not 1 <= stored.num_channels <= MAX_CHANNELS:
        raise UnreadableImage(f"{stored.num_channels} channels; up to {MAX_CHANNELS} are read")
    if stored.size[0] * stored.size[1] * stored.num_channels > 4 * MAX_PIXELS:
        raise UnreadableImage(f"{stored.num_channels} channels of {stored.size[1]} x {stored.size[0]} pixels, too many")
    return stored._replace(kind=stored.kind or _kind(stored))


def read_header(path: Path, pages: str = "auto") -> StoredImage:
    """As `open_header`, of a file."""
    return open_header(read_bytes(path), pages)


def open_header(data: bytes, pages: str = "auto") -> StoredImage:
    """As `open_stored`; any failure is UnreadableImage."""
    try:
        return open_stored(data, pages)
    except UnreadableImage:
        raise
    except Exception as error:  # as many kinds as for damaged pixels
        raise UnreadableImage(f"damaged header ({first_line(error)})") from error


def decode_stored(data: bytes, pixels: PixelFormat) -> Real[np.ndarray, "H W C"]:
    """The pixels of an image file in the format of a run.

    Raises:
        UnreadableImage: for whatever reason there are no such pixels, another number of channels included.
    """
    try:
        stored = open_stored(data, pixels.pages)
        return to_pixels(stored, stored.load(), pixels)
    except UnreadableImage:
        raise
    except Exception as error:  # decoders raise nearly anything at damaged bytes
        raise UnreadableImage(f"damaged {image_format(data)} ({first_line(error)})") from error


def to_pixels(stored: StoredImage, values: Real[np.ndarray, "H W S"], pixels: PixelFormat) -> Real[np.ndarray, "H W C"]:
    """Stored numbers as levels of 8 bits or as values in [0, 1]; transparent parts show white."""
    # 1. As many channels as the run has.
    if stored.num_channels != pixels.num_channels and not (
        stored.alpha and stored.num_channels == pixels.num_channels + 1
    ):
        raise UnreadableImage(
            f"{_channels(stored.num_channels)} ({stored.kind}), where images of {pixels.num_channels} are read"
        )
    # 2. Bytes as they are.
    is_bytes = values.dtype == np.uint8 and stored.num_bits == 8 and pixels.value_range is None
    if pixels.dtype == "uint8" and is_bytes and stored.num_channels == pixels.num_channels:
        return np.ascontiguousarray(values)
    # 3. All else through float: 24 bits tell every level of 16 apart.
    low, high = pixels.value_range or _own_range(stored)
    scaled = (values.astype(np.float32) - np.float32(low)) / np.float32(high - low)
    scaled = np.nan_to_num(scaled, copy=False, nan=0.0).clip(0, 1)  # no data: as black
    if stored.num_channels > pixels.num_channels:
        colors, alpha = scaled[..., :-1], scaled[..., -1:]
        scaled = (colors * alpha if stored.alpha == "straight" else colors) + (1 - alpha)
        scaled = scaled.clip(0, 1)
    if pixels.dtype == "uint8":
        return np.rint(255 * scaled).astype(np.uint8)
    return np.ascontiguousarray(scaled, np.float32)


def _channels(count: int) -> str:
    return f"{count} channel{'' if count == 1 else 's'}"


def _own_range(stored: StoredImage) -> tuple[float, float]:
    if stored.number != "unsigned" or stored.num_bits > 16:
        raise UnreadableImage(
            f"{stored.kind}, whose range is not known; give it (--images.value-range LOW HIGH), or convert the image "
            "to 8 or 16 bits"
        )
    return 0, 2**stored.num_bits - 1


def _open_with_pillow(data: bytes, format_: str) -> StoredImage:
    """Up to 8 bits per channel, of formats of which nothing has to be done that Pillow does not do."""
    with warnings.catch_warnings(action="ignore"), Image.open(io.BytesIO(data), formats=[format_]) as image:
        orientation = orientation_of(image)
        rows, columns = image.height, image.width
        mode = "L" if image.mode == "1" else image.mode
        if image.has_transparency_data and mode != "LA":
            mode = "RGBA"
        mode = mode if mode in _BANDS else "RGB"
        kind = kind_of(image)

    def load() -> Stored:
        with warnings.catch_warnings(action="ignore"), Image.open(io.BytesIO(data), formats=[format_]) as image:
            image.load()
            values = np.array(image.convert(mode))
            # Pillow turns a TIFF itself while it loads.
            turn = orientation_of(image) if format_ == "TIFF" else orientation
            return upright(values.reshape(*values.shape[:2], -1), turn)

    alpha: Alpha = "straight" if mode in ("LA", "RGBA") else ""
    size = (columns, rows) if orientation in (5, 6, 7, 8) else (rows, columns)
    return StoredImage(format_, size, _BANDS[mode], "unsigned", 8, alpha, kind, load)


def _open_deep_png(data: bytes) -> StoredImage:
    header = png_header(data)
    with warnings.catch_warnings(action="ignore"), Image.open(io.BytesIO(data), formats=["PNG"]) as image:
        orientation = orientation_of(image)
        has_key = "transparency" in image.info  # one color that is transparent: OpenCV makes alpha of it, but of RGB
    num_colors = 1 if header.color_type in (0, 4) else 3
    has_alpha = header.color_type in (4, 6) or (has_key and num_colors == 3)

    def load() -> Stored:
        values = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED | cv2.IMREAD_IGNORE_ORIENTATION)
        if values is None or values.dtype != np.uint16:
            raise UnreadableImage("damaged PNG")
        values = values.reshape(*values.shape[:2], -1)
        if values.shape[2] >= 3:
            values = values[..., [2, 1, 0, *range(3, values.shape[2])]]
        if num_colors == 1 and values.shape[2] >= 3:
            values = values[..., [0, 3]] if has_alpha else values[..., :1]
        return upright(values, orientation)

    size = (header.columns, header.rows) if orientation in (5, 6, 7, 8) else (header.rows, header.columns)
    return StoredImage(
        "PNG", size, num_colors + has_alpha, "unsigned", 16, "straight" if has_alpha else "", "", load
    )  # fmt: skip


def _kind(stored: StoredImage) -> str:
    """Such as "16-bit gray", "color" or "floating-point, 9 channels"."""
    bits = f"{'signed ' if stored.number == 'signed' else ''}{stored.num_bits}-bit"
    depth = "floating-point" if stored.number == "float" else "" if bits == "8-bit" else bits
    colors = {1: "gray", 3: "color"}.get(stored.num_colors)
    if colors is None:
        return ", ".join(filter(None, [depth, f"{stored.num_channels} channels"]))
    return f"{depth} {colors}".strip() + (" with transparency" if stored.alpha else "")
