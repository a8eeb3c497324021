"""Files as bytes: only regular ones of allowed size, their format told by their first bytes."""

import os
import stat
from pathlib import Path

from selfpatch.output.transient_errors import retried

# About 13,400 x 13,400. A small file can claim any size: larger claims are refused before a pixel is decoded.
MAX_PIXELS = 178_956_970
# No image of MAX_PIXELS needs more: four channels of 16 bits, uncompressed.
MAX_BYTES = 8 * MAX_PIXELS

FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "NPY", "NPZ")
FORMATS_TEXT = "JPEG, PNG, WebP, TIFF, BMP, GIF or NumPy"


class UnreadableImage(ValueError):  # noqa: N818
    """Why a file gives no pixels, in a few words and without its name."""


def check_size(rows: int, columns: int) -> None:
    if rows < 1 or columns < 1:
        raise UnreadableImage(f"{columns} x {rows} pixels")
    if rows * columns > MAX_PIXELS:
        raise UnreadableImage(f"{columns} x {rows} pixels, more than {MAX_PIXELS:,} in all")


def read_bytes(path: Path, limit: int = -1) -> bytes:
    """The whole file, or its first `limit` bytes.

    A network file system that fails for a moment is asked again.

    Raises:
        UnreadableImage: it cannot be opened, is no regular file, or larger than any image of allowed size.
    """
    try:
        return retried(lambda: _read_bytes(path, limit))
    except OSError as error:
        raise UnreadableImage(error.strerror or str(error)) from error


def _read_bytes(path: Path, limit: int) -> bytes:
    status = os.stat(path)
    # Opening a named pipe would wait for ever.
    if not stat.S_ISREG(status.st_mode):
        raise UnreadableImage("a folder" if stat.S_ISDIR(status.st_mode) else "not a regular file")
    if status.st_size > MAX_BYTES:
        raise UnreadableImage(f"{status.st_size / 2**30:.1f} GiB, more than any image of allowed size needs")
    with open(path, "rb") as file:
        return file.read(limit)


def image_format(data: bytes) -> str:
    """One of FORMATS, by the signature of the content: a name's ending says little.

    Raises:
        UnreadableImage: empty, or of none of these formats.
    """
    if not data:
        raise UnreadableImage("empty file")
    if data.startswith(b"\xff\xd8"):
        return "JPEG"
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return "TIFF"
    if data[:6] in (b"GIF87a", b"GIF89a"):
        return "GIF"
    # Two letters begin many a text: the size of the header that follows is one of few.
    if data[:2] == b"BM" and int.from_bytes(data[14:18], "little") in (12, 16, 40, 52, 56, 64, 108, 124):
        return "BMP"
    if data.startswith(b"\x93NUMPY"):
        return "NPY"
    if data.startswith(b"PK\x03\x04"):
        return "NPZ"
    raise UnreadableImage(f"not a {FORMATS_TEXT} file")


def first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:120]
