"""TIFF as the array that it stores: more channels than colors, more than 8 bits, signed or floating point, GeoTIFF.

tifffile reads them. Palettes, CMYK and subsampled colors are left to Pillow, as are 1 to 4 channels of 8 bits.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Real

from selfpatch.data.reading.channel_axis import channel_axis, channels_last, rows_columns_channels
from selfpatch.data.reading.image_file import MAX_PIXELS, UnreadableImage, first_line
from selfpatch.data.reading.pixels import upright
from selfpatch.data.reading.tiff import first_page, uncompressed_samples

_NUMBERS = {1: "unsigned", 2: "signed", 3: "float", 4: "unsigned"}
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB = 0, 1, 2
_UNCOMPRESSED, _ORIENTATION = 1, 274
_ALPHA = {1: "premultiplied", 2: "straight"}


class TiffArray(NamedTuple):
    """The leading fields of `StoredImage`."""

    size: tuple[int, int]
    num_channels: int
    number: str
    num_bits: int
    alpha: str
    load: Callable[[], Real[np.ndarray, "H W C"]]


def open_tiff(data: bytes, pages: str) -> TiffArray | None:
    """None: a kind that is left to Pillow."""
    with first_page(data) as page:
        file = page.parent
        photometric, bits = int(page.photometric), page.bitspersample
        number = _NUMBERS.get(int(page.sampleformat))
        spans_pages = pages == "channels" or (pages == "auto" and (file.is_shaped or file.is_imagej or file.is_ome))
        shape, axes = tuple(file.series[0].shape), file.series[0].axes
        spans_pages = spans_pages and len(file.series[0].pages) > 1 and page.samplesperpixel == 1
        if pages == "channels" and len(file.pages) > 1 and len(file.series[0].pages) < len(file.pages):
            raise UnreadableImage("pages that differ in size or depth cannot be channels (--images.pages first)")
        if not spans_pages:
            shape, axes = tuple(page.shape), page.axes
        if math.prod(shape) > 4 * MAX_PIXELS:  # all of it is read, also where one plane counts
            raise UnreadableImage(f"an array of shape {shape}, too many numbers")
        if number is None or photometric not in (_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB):
            return None
        if bits < 8 or (not spans_pages and bits == 8 and number == "unsigned" and photometric == _RGB):
            return None
        extra = tuple(map(int, page.extrasamples))
        # Several bands with "alpha" behind gray are bands: only RGB and a single gray have transparency.
        alpha = ""
        if extra and page.samplesperpixel == (3 if photometric == _RGB else 1) + 1:
            alpha = _ALPHA.get(extra[0], "")
        orientation = page.tags.valueof(_ORIENTATION, 1)
        is_packed = bits not in (8, 16, 32, 64)
        if is_packed and (spans_pages or page.compression != _UNCOMPRESSED):
            raise UnreadableImage(f"compressed or several pages of {bits}-bit samples; convert them to 16 bits")
    picked, axis = _pick_plane(shape, axes, all_pages=pages == "channels")

    def load() -> Real[np.ndarray, "H W C"]:
        with first_page(data) as page:
            try:
                if is_packed:
                    values = uncompressed_samples(page, data)
                else:
                    values = page.parent.series[0].asarray() if spans_pages else page.asarray()
                    values = channels_last(values[picked], axis)
            except ValueError as error:
                if "imagecodecs" in str(error):
                    raise UnreadableImage(
                        f"{page.compression.name} compression needs imagecodecs: pip install 'selfpatch[formats]'"
                    ) from error
                raise UnreadableImage(f"damaged TIFF ({first_line(error)})") from error
        if photometric == _WHITE_IS_ZERO and number == "unsigned":
            values = np.asarray(2**bits - 1, values.dtype) - values
        return upright(values, orientation)

    rows, columns, channels = rows_columns_channels(
        tuple(n for n, p in zip(shape, picked, strict=True) if p != 0), axis
    )
    size = (columns, rows) if orientation in (5, 6, 7, 8) else (rows, columns)
    return TiffArray(size, channels, number, bits, alpha, load)


def _pick_plane(shape: tuple[int, ...], axes: str, *, all_pages: bool) -> tuple[tuple[slice | int, ...], int | None]:
    """The index that leaves rows, columns and channels (depth, time and positions: the first); the channels' axis."""
    whole = slice(None)
    named = [axis for axis in axes if axis in "CS"]
    picked: list[slice | int] = [whole] * len(shape)
    if len(shape) > 2 + bool(named) and not (all_pages and len(shape) == 3):
        for place, axis in enumerate(axes):
            beyond = axis not in "YXCS" and (named or axis not in "QI" or len(shape) > 3)
            if beyond:
                picked[place] = 0
    left = [place for place, pick in enumerate(picked) if pick is whole]
    left_shape, left_axes = tuple(shape[place] for place in left), "".join(axes[place] for place in left)
    if len(left) == 3 and len(named) == 1:
        return tuple(picked), left_axes.index(named[0])
    return tuple(picked), channel_axis(left_shape)
