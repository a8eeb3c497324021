"""TIFF: deep uncompressed samples by their own depth and photometric rule, all else as Pillow and libtiff read it.

Pillow inverts 16-bit MinIsWhite, scrambles 16-bit samples in separate planes and knows few kinds of 12 bits. Those are
read here, from what tifffile finds in the first directory, as long as they are uncompressed. Compressed ones go to
libtiff through Pillow, and are refused where Pillow does not know their kind.
"""

import io
import logging
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import tifffile
from jaxtyping import Float, UInt8, UInt16
from PIL import Image

from selfpatch.data.reading.image_file import UnreadableImage, check_size
from selfpatch.data.reading.pixels import gray_to_rgb, kind_of, orientation_of, to_8_bits, to_rgb, upright

_UNCOMPRESSED, _PLANAR, _UNSIGNED, _UNDEFINED, _ORIENTATION = 1, 2, 1, 4, 274
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _CMYK, _YCBCR = 0, 1, 2, 5, 6
_NUM_COLORS = {_WHITE_IS_ZERO: 1, _BLACK_IS_ZERO: 1, _RGB: 3, _CMYK: 4, _YCBCR: 3}
_PREMULTIPLIED, _ALPHA = 1, 2

# What it warns of is odd metadata; without a handler Python prints it.
logging.getLogger("tifffile").addHandler(logging.NullHandler())


def read_tiff(data: bytes) -> tuple[UInt8[np.ndarray, "H W 3"], str]:
    """Pixels of the first page, upright, and their kind; thumbnails, pyramids and further pages do not count."""
    with first_page(data) as page:
        check_size(page.imagelength, page.imagewidth)
        bits, format_ = page.bitspersample, page.sampleformat
        if bits > 16 or format_ not in (_UNSIGNED, _UNDEFINED):
            raise UnreadableImage(
                "signed, 32-bit or floating-point pixels, whose range is not known; convert them to 8 or 16 bits"
            )
        is_deep = bits > 8
        is_planar = page.planarconfig == _PLANAR and page.samplesperpixel > 1
        if page.compression == _UNCOMPRESSED and (is_deep or is_planar or page.photometric == _YCBCR):
            num_colors = _num_colors(page)
            pixels, kind = _photometric(page, num_colors, uncompressed_samples(page, data))
            return upright(pixels, page.tags.valueof(_ORIENTATION, 1)), kind
        if is_planar and page.photometric == _RGB and page.samplesperpixel > 3 and not page.extrasamples:
            raise UnreadableImage(
                "compressed TIFF of four planes that does not say what the fourth is; convert it to PNG or uncompressed"
            )
        is_inverted = page.photometric == _WHITE_IS_ZERO
        color_map = page.colormap
    # Pillow warns of odd metadata and of sizes that check_size judges.
    with warnings.catch_warnings(action="ignore"), Image.open(io.BytesIO(data), formats=["TIFF"]) as image:
        image.load()
        if not image.mode.startswith("I;16"):
            if image.mode == "P" and color_map is not None and color_map.max() < 256:
                # Colors of 8 bits, though 16 are due: written by many, and read so by libtiff's tools.
                image.putpalette(np.ascontiguousarray(color_map.T).astype(np.uint8).tobytes())
            # Asked for after loading: Pillow turns a TIFF itself, and then it says 1.
            return upright(to_rgb(image), orientation_of(image)), kind_of(image)
        gray = to_8_bits(np.asarray(image), bits)
        return upright(gray_to_rgb(255 - gray if is_inverted else gray), orientation_of(image)), f"{bits}-bit gray"


def tiff_size(data: bytes) -> tuple[int, int]:
    """(rows, columns) as they are shown."""
    with first_page(data) as page:
        turned = page.tags.valueof(_ORIENTATION, 1) in (5, 6, 7, 8)
        return (page.imagewidth, page.imagelength) if turned else (page.imagelength, page.imagewidth)


@contextmanager
def first_page(data: bytes) -> Iterator[tifffile.TiffPage]:
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        page = file.pages[0]
        assert isinstance(page, tifffile.TiffPage)
        # A damaged tag may give several numbers, or bytes.
        if not all(isinstance(side, int) for side in (page.imagelength, page.imagewidth)):
            raise UnreadableImage("damaged TIFF (its size is no number)")
        yield page


def _num_colors(page: tifffile.TiffPage) -> int:
    """Samples of a pixel that are its color."""
    num_colors = _NUM_COLORS.get(page.photometric, 0)
    if num_colors == 0 or page.samplesperpixel < num_colors or page.samplesperpixel > max(2, 2 * num_colors):
        raise UnreadableImage(
            f"TIFF with an unusual kind of pixels ({page.samplesperpixel} channels of {page.bitspersample} bits, "
            f"photometric {int(page.photometric)}); convert them to gray or RGB of 8 or 16 bits"
        )
    return num_colors


def uncompressed_samples(
    page: tifffile.TiffPage, data: bytes
) -> UInt16[np.ndarray, "H W _s"] | UInt8[np.ndarray, "H W _s"]:
    """Uncompressed samples as they are stored, of contiguous pixels or separate planes, strips or tiles."""
    planes, _, rows, columns, contiguous = page.shaped
    segments = list(zip(page.dataoffsets, page.databytecounts, strict=False))
    if (
        not len(page.dataoffsets) == len(page.databytecounts) == math.prod(page.chunked)
        or any(start + count > len(data) for start, count in segments)
        or 8 * sum(page.databytecounts) < page.bitspersample * planes * rows * columns * contiguous
    ):
        raise UnreadableImage("damaged TIFF (pixels are missing)")
    if page.bitspersample in (8, 16):
        samples = page.asarray().reshape(page.shaped)[:, 0]
    else:
        samples = _unpacked(page, data).reshape(planes, rows, columns, contiguous)
    return np.moveaxis(samples, 0, -2).reshape(rows, columns, planes * contiguous)


def _unpacked(page: tifffile.TiffPage, data: bytes) -> UInt16[np.ndarray, "L S"]:
    """Samples of 9 to 15 bits, most significant bit first in either byte order; every row begins with a byte."""
    planes, _, rows, columns, contiguous = page.shaped
    if page.is_tiled:
        raise UnreadableImage(f"tiles of {page.bitspersample}-bit samples; convert them to 8 or 16 bits")
    strips = zip(page.dataoffsets, page.databytecounts, strict=True)
    packed = np.frombuffer(b"".join(data[start : start + count] for start, count in strips), np.uint8)
    bytes_per_row = -(-columns * contiguous * page.bitspersample // 8)
    if packed.size < planes * rows * bytes_per_row:
        raise UnreadableImage("damaged TIFF (pixels are missing)")
    packed = packed[: planes * rows * bytes_per_row].reshape(planes * rows, bytes_per_row)
    bits = np.unpackbits(packed, axis=1, bitorder="little" if page.fillorder == 2 else "big")
    bits = bits[:, : columns * contiguous * page.bitspersample].reshape(planes * rows, -1, page.bitspersample)
    padded = np.pad(bits, ((0, 0), (0, 0), (16 - page.bitspersample, 0)))
    return np.packbits(padded, axis=-1).view(">u2")[..., 0].astype(np.uint16)


def _photometric(
    page: tifffile.TiffPage,
    num_colors: int,
    samples: UInt16[np.ndarray, "H W _s"] | UInt8[np.ndarray, "H W _s"],
) -> tuple[UInt8[np.ndarray, "H W 3"], str]:
    """Pixels as colors over white, and their kind."""
    photometric = page.photometric
    colors = to_8_bits(samples[..., :num_colors], page.bitspersample)
    kind = "gray" if num_colors == 1 else "CMYK" if photometric == _CMYK else "color"
    kind = kind if page.bitspersample == 8 else f"{page.bitspersample}-bit {kind}"
    if photometric == _WHITE_IS_ZERO:
        colors = 255 - colors
    if num_colors == 1:
        colors = gray_to_rgb(colors[..., 0])
    if photometric in (_CMYK, _YCBCR):
        mode = "CMYK" if photometric == _CMYK else "YCbCr"
        image = Image.frombytes(mode, (colors.shape[1], colors.shape[0]), np.ascontiguousarray(colors).tobytes())
        colors = np.array(image.convert("RGB"))
    # Four samples of RGB without a word on the fourth: written by many for alpha, and read so by Pillow.
    extra = tuple(map(int, page.extrasamples)) or ((_ALPHA,) if samples.shape[-1] == 4 and num_colors == 3 else ())
    for place, meaning in enumerate(extra, start=num_colors):
        if meaning in (_PREMULTIPLIED, _ALPHA):
            alpha = samples[..., place, None] / (2**page.bitspersample - 1)
            return _over_white(colors, alpha, premultiplied=meaning == _PREMULTIPLIED), "with transparency"
    return colors, kind


def _over_white(
    colors: UInt8[np.ndarray, "H W 3"], alpha: Float[np.ndarray, "H W 1"], *, premultiplied: bool
) -> UInt8[np.ndarray, "H W 3"]:
    blended = (colors if premultiplied else colors * alpha) + 255 * (1 - alpha)
    return np.rint(blended).clip(0, 255).astype(np.uint8)
