"""An image file becomes 8-bit RGB pixels, or is refused with a reason; nothing in between."""

import io
import os
import stat
import warnings
from pathlib import Path

import numpy as np
import simplejpeg
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError

# About 13,400 x 13,400. A small file can claim any size: larger claims are refused before a pixel is decoded.
MAX_PIXELS = 178_956_970
# No image of MAX_PIXELS needs more: four channels of 16 bits, uncompressed.
MAX_BYTES = 8 * MAX_PIXELS

FORMATS = ("JPEG", "PNG", "WEBP", "TIFF")

_EXIF_ORIENTATION = 0x0112
_START_OF_SCAN, _APP1 = 0xDA, 0xE1  # JPEG's markers


class UnreadableImage(ValueError):  # noqa: N818
    """Why a file gives no pixels, in a few words and without its name."""


def read_image(path: Path) -> UInt8[np.ndarray, "H W 3"]:
    """The pixels of a JPEG, PNG, WebP or TIFF file as people see it, told by its content, not by its name.

    - Turned upright as its EXIF orientation says.
    - Transparent parts show white: what was cut out is mostly shown on white, and black would swallow dark drawings.
    - 16 bits a channel become 8 by 65535 -> 255 (division by 257; colour images by their high byte, within one level).
    - Grey becomes three equal channels; palettes and CMYK are converted; of several frames or pages the first counts.

    A file that ends too early or is damaged where its decoder can tell is refused: half an image is no image.

    Raises:
        UnreadableImage: for whatever reason there are no such pixels, a file that cannot be opened included.
    """
    data = _read_regular_file(path)
    format_ = _format(data)
    try:
        return _read_jpeg(data) if format_ == "JPEG" else _read_with_pillow(data, format_)
    except UnreadableImage:
        raise
    except Image.DecompressionBombError as error:
        raise UnreadableImage(f"more than {MAX_PIXELS:,} pixels") from error
    except UnidentifiedImageError as error:
        raise UnreadableImage(f"{format_} with a damaged header or an unusual kind of pixels") from error
    except Exception as error:  # decoders raise nearly anything at damaged bytes, from SyntaxError to struct.error
        raise UnreadableImage(f"damaged {format_} ({_first_line(error)})") from error


def read_size(path: Path) -> tuple[int, int]:
    """(rows, columns) of what `read_image` gives, from the header alone: damaged pixels go unnoticed.

    Raises:
        UnreadableImage: there is no such header.
    """
    try:
        # Before it is opened: opening a named pipe would wait for ever.
        if not path.is_file():
            raise UnreadableImage("not a regular file" if path.exists() else "no such file")
        with warnings.catch_warnings(action="ignore"), Image.open(path, formats=FORMATS) as image:
            _check_size(image.height, image.width)
            # Of a TIFF, Pillow gives the size that it will have when it is turned.
            lies = image.format != "TIFF" and _orientation(image) in (5, 6, 7, 8)
            return (image.width, image.height) if lies else (image.height, image.width)
    except UnreadableImage:
        raise
    except Exception as error:  # as many kinds as for damaged pixels
        raise UnreadableImage(f"no header of a {', '.join(FORMATS)} file ({_first_line(error)})") from error


def _read_regular_file(path: Path) -> bytes:
    try:
        status = os.stat(path)
        # Opening a named pipe would wait for ever.
        if not stat.S_ISREG(status.st_mode):
            raise UnreadableImage("a folder" if stat.S_ISDIR(status.st_mode) else "not a regular file")
        if status.st_size > MAX_BYTES:
            raise UnreadableImage(f"{status.st_size / 2**30:.1f} GiB, more than any image of allowed size needs")
        return Path(path).read_bytes()
    except OSError as error:
        raise UnreadableImage(error.strerror or str(error)) from error


def _format(data: bytes) -> str:
    if not data:
        raise UnreadableImage("empty file")
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return "TIFF"
    raise UnreadableImage("not a JPEG, PNG, WebP or TIFF file")


def _check_size(rows: int, columns: int) -> None:
    if rows * columns > MAX_PIXELS:
        raise UnreadableImage(f"{columns} x {rows} pixels, more than {MAX_PIXELS:,} in all")


def _read_jpeg(data: bytes) -> UInt8[np.ndarray, "H W 3"]:
    rows, columns, colorspace, _ = simplejpeg.decode_jpeg_header(data)
    _check_size(rows, columns)
    # Strict, which is the default: libjpeg fills what is missing with grey and calls that a warning.
    if colorspace in ("CMYK", "YCCK"):
        # Stored inverted, as Adobe does and everybody takes for granted.
        inverted = simplejpeg.decode_jpeg(data, colorspace="CMYK")
        pixels = np.array(Image.frombytes("CMYK", (columns, rows), 255 - inverted).convert("RGB"))
    else:
        pixels = simplejpeg.decode_jpeg(data)
    if not _has_exif(data):
        return pixels
    with warnings.catch_warnings(action="ignore"), Image.open(io.BytesIO(data), formats=["JPEG"]) as header:
        return _upright(pixels, _orientation(header))


def _has_exif(jpeg: bytes) -> bool:
    """Among the segments before the pixels, which say how long they are; a search would go through the pixels too."""
    place = 2
    while jpeg[place : place + 1] == b"\xff":
        kind, length = jpeg[place + 1], int.from_bytes(jpeg[place + 2 : place + 4])
        if kind == _START_OF_SCAN:
            return False
        if kind == _APP1 and jpeg[place + 4 : place + 10] == b"Exif\0\0":
            return True
        place += 1 if kind == 0xFF else 2 + length  # FF may be repeated
    return False


def _read_with_pillow(data: bytes, format_: str) -> UInt8[np.ndarray, "H W 3"]:
    # Pillow warns of odd metadata and of sizes that _check_size judges.
    with warnings.catch_warnings(action="ignore"), Image.open(io.BytesIO(data), formats=[format_]) as image:
        _check_size(image.height, image.width)
        image.load()
        # Asked for after loading: Pillow turns a TIFF itself, and then it says 1.
        orientation = _orientation(image)
        return _upright(_to_rgb(image), orientation)


def _to_rgb(image: Image.Image) -> UInt8[np.ndarray, "H W 3"]:
    if image.mode.startswith("I;16"):
        gray = np.rint(np.asarray(image) / 257).astype(np.uint8)
        return np.repeat(gray[..., None], 3, axis=-1)
    if image.mode in ("I", "F"):
        raise UnreadableImage("32-bit pixels, whose range is not known; convert them to 8 or 16 bits")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.array(image.convert("RGB"))  # a copy: Pillow's own memory is read-only, which torch warns of


def _orientation(image: Image.Image) -> int:
    if image.format == "JPEG" and "exif" not in image.info:  # Pillow would look into XMP, which viewers do not
        return 1
    try:
        return int(image.getexif().get(_EXIF_ORIENTATION, 1))
    except Exception:  # as many kinds as for damaged pixels; but these pixels are good
        return 1


def _upright(pixels: UInt8[np.ndarray, "H W 3"], orientation: int) -> UInt8[np.ndarray, "R S 3"]:
    """Undo an EXIF orientation: 1 to 8, others mean nothing."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:120]
