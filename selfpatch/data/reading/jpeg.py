"""JPEG: what libjpeg-turbo decodes without a warning, and what it only warns of although every pixel is there."""

import re
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import simplejpeg
from jaxtyping import UInt8
from PIL import Image

from selfpatch.data.reading.image_file import MAX_PIXELS, UnreadableImage, check_size, first_line

# Markers (ITU-T T.81, table B.1).
_SOI, _EOI, _SOS, _APP0, _APP1, _APP14, _APP15, _COM = 0xD8, 0xD9, 0xDA, 0xE0, 0xE1, 0xEE, 0xEF, 0xFE
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_SEQUENTIAL_FRAMES = (0xC0, 0xC1)
_WITHOUT_LENGTH = frozenset((0x01, _SOI, *range(0xD0, 0xD8)))

# The last FF alone of those that fill the place before a marker: a run of them would be tried from each of its bytes.
_MARKER = re.compile(rb"\xff([\x01-\xfe])", re.DOTALL)
_FILLED_MARKER = re.compile(rb"(?<!\xff)\xff++[\x01-\xfe]", re.DOTALL)
# Within a scan FF 00 is a byte of it, and D0 to D7 restart it.
_END_OF_SCAN = re.compile(rb"\xff([\x01-\xcf\xd8-\xfe])", re.DOTALL)
_EXTRANEOUS = re.compile(r"(\d+) extraneous bytes before marker")
# Places tried where extraneous bytes may be; each costs one decoding.
_MAX_PLACES = 64
# Far more than any file has: each costs time without a pixel to show for it.
_MAX_SEGMENTS = 100_000
# Scans times pixels; an image of the largest size may have a hundred, and smaller ones more.
_MAX_SCANNED = 100 * MAX_PIXELS


class Segment(NamedTuple):
    """A marker and what belongs to it: data[start:end], from its FF on."""

    marker: int
    start: int
    end: int


def read_jpeg(data: bytes) -> tuple[UInt8[np.ndarray, "H W 3"], str, str]:
    """Pixels as they are stored, not turned; their kind; and libjpeg's warning, "" for most files.

    libjpeg warns of two things: of pixels that are not there, which it makes up, and of header fields that do not
    matter. So a file with a warning is decoded once more, without what does not matter; then every warning is damage.

    Raises:
        UnreadableImage: more pixels than are allowed.
        ValueError: damaged.
    """
    try:
        return *_decode(data), ""
    except UnreadableImage:
        raise
    except ValueError as error:
        return *_decode_without_extraneous_bytes(_tidied(data), str(error)), first_line(error)


def jpeg_size(data: bytes) -> tuple[int, int] | None:
    """(rows, columns) as they are shown, from the header; None where `data` ends before its frame header."""
    orientation = jpeg_orientation(data)
    for segment in _segments(data):
        if segment.marker in _FRAMES and segment.end - segment.start >= 9:
            rows, columns = (int.from_bytes(data[segment.start + i : segment.start + i + 2]) for i in (5, 7))
            return (columns, rows) if orientation in (5, 6, 7, 8) else (rows, columns)
        if segment.marker == _SOS:
            break
    return None


def jpeg_orientation(data: bytes) -> int:
    """EXIF's, 1 to 8; 1 where there is none, or none that can be read. XMP's does not count: viewers ignore it."""
    for marker, start, end in _segments(data):
        if marker == _SOS:
            break
        if marker == _APP1 and data[start + 4 : start + 10] == b"Exif\0\0":
            return _exif_orientation(data[start + 4 : end])
    return 1


def _exif_orientation(exif_bytes: bytes) -> int:
    exif = Image.Exif()
    try:
        exif.load(exif_bytes)
        return int(exif.get(0x0112, 1))
    except Exception:  # as many kinds as for damaged pixels; but these pixels are good
        return 1


def _decode(data: bytes) -> tuple[UInt8[np.ndarray, "H W 3"], str]:
    rows, columns, colorspace, _ = simplejpeg.decode_jpeg_header(data)
    check_size(rows, columns)
    # Each scan goes over all pixels, however few bytes it has.
    if data.count(b"\xff\xda") * int(rows) * int(columns) > _MAX_SCANNED:
        raise UnreadableImage("more scans of its pixels than any JPEG needs")
    # Strict, which is the default: libjpeg fills what is missing with gray and calls that a warning.
    if colorspace in ("CMYK", "YCCK"):
        # Stored inverted, as Adobe does and everybody takes for granted.
        inverted = simplejpeg.decode_jpeg(data, colorspace="CMYK")
        return np.array(Image.frombytes("CMYK", (columns, rows), 255 - inverted).convert("RGB")), "CMYK"
    return simplejpeg.decode_jpeg(data), "gray" if colorspace == "Gray" else "color"


def _decode_without_extraneous_bytes(data: bytes, warning: str) -> tuple[UInt8[np.ndarray, "H W 3"], str]:
    """Bytes between the end of a scan, or of a part of it, and the marker behind it mean nothing.

    libjpeg counts the bytes that it passed over, but not always at the first marker behind them, and keeps silent on
    what it finds after that. So places are tried until the rest decodes without a warning.
    """
    if "Premature end of JPEG file" in warning and _has_one_scan(data):
        data += b"\xff\xd9"  # with which a scan that is whole decodes without a warning
    try:
        return _decode(data)
    except ValueError as error:
        if (found := _EXTRANEOUS.search(str(error))) is None:
            raise
        scans = next((segment.end for segment in _segments(data) if segment.marker == _SOS), len(data))
        places = [marker.start() for marker in _FILLED_MARKER.finditer(data, scans)]
        for place in places[-1:] + places[:_MAX_PLACES]:  # mostly they stand before the end of the image
            try:
                return _decode(data[: place - int(found[1])] + data[place:])
            except ValueError:
                continue
        raise


def _tidied(data: bytes) -> bytes:
    """Without what does not concern pixels: metadata, bytes between segments, values that sequential JPEG ignores."""
    parts, end_before, sequential, in_scan = [b"\xff\xd8"], 2, False, False
    for marker, start, end in _segments(data):
        if in_scan:
            parts.append(data[end_before:start])
        segment = bytearray(data[start:end])
        if marker in _FRAMES:
            sequential = marker in _SEQUENTIAL_FRAMES
        elif marker == _SOS and sequential:
            segment[-3:] = (0, 63, 0)  # Ss, Se, Ah and Al: all coefficients in one go (T.81, table B.3)
        elif segment[4:9] == b"JFIF\0" and marker == _APP0 and len(segment) > 9:
            segment[9] = 1  # the major version; nothing that is read depends on it
        elif (_APP0 <= marker <= _APP15 and marker != _APP14) or marker == _COM:  # APP14 says how colors are stored
            segment.clear()
        parts.append(bytes(segment))
        end_before, in_scan = end, marker == _SOS
    return b"".join(parts if parts[-1] == b"\xff\xd9" else [*parts, data[end_before:]])


def _has_one_scan(data: bytes) -> bool:
    """A sequential frame, whose first scan has all its components: then the end of that scan is the last pixel."""
    num_components, scans = 0, []
    for marker, start, _ in _segments(data):
        if marker in _SEQUENTIAL_FRAMES:
            num_components = data[start + 9]
        elif marker == _SOS:
            scans.append(data[start + 4])
    return scans == [num_components]


def _segments(data: bytes) -> Iterator[Segment]:
    """All segments up to the end of the image, over whatever lies between them, as libjpeg finds them.

    Raises:
        UnreadableImage: more than any file has.
    """
    position, in_scan, num_segments = 2, False, 0
    while match := (_END_OF_SCAN if in_scan else _MARKER).search(data, position):
        marker, start, position = match[1][0], match.end() - 2, match.end()
        if marker not in _WITHOUT_LENGTH and marker != _EOI:
            position += int.from_bytes(data[position : position + 2])
            if position < match.end() + 2 or position > len(data):
                return
        if (num_segments := num_segments + 1) > _MAX_SEGMENTS:
            raise UnreadableImage(f"more than {_MAX_SEGMENTS:,} segments")
        yield Segment(marker, start, position)
        if marker == _EOI:
            return
        in_scan = marker == _SOS
