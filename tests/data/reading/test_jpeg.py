"""JPEG: a warning of libjpeg's is damage only where pixels are missing. Files are patched byte by byte."""

import io
import re
import struct

import numpy as np
import pytest
from PIL import Image

from selfpatch.data.reading.decode import DecodedImage, UnreadableImage, decode_image, read_size

ROWS, COLUMNS = 80, 96


def encoded(mode: str = "RGB", **settings) -> bytes:
    y, x = np.mgrid[0:ROWS, 0:COLUMNS]
    noise = np.random.default_rng(0).integers(0, 60, (ROWS, COLUMNS, 3))
    pixels = np.stack([2 * x, 2 * y, 195 - x - y], -1) % 195 + noise
    file = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).convert(mode).save(file, "JPEG", **settings)
    return file.getvalue()


BASELINE = encoded()
PROGRESSIVE = encoded(progressive=True)
RESTARTS = encoded(restart_marker_blocks=4)
VARIANTS = {
    "baseline": BASELINE, "progressive": PROGRESSIVE, "restarts": RESTARTS, "gray": encoded("L"),
    "CMYK": encoded("CMYK"), "4:4:4": encoded(subsampling=0),
}  # fmt: skip


def patched(data: bytes, place: int, new: bytes) -> bytes:
    return data[:place] + new + data[place + len(new) :]


def inserted(data: bytes, place: int, new: bytes) -> bytes:
    return data[:place] + new + data[place:]


def segment(marker: int, body: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body


def places(data: bytes, pattern: bytes) -> list[int]:
    return [match.start() for match in re.finditer(pattern, data, re.DOTALL)]


def scan_parameters(data: bytes) -> int:
    """Where Ss, Se, Ah and Al stand, in the last three bytes of the header of the first scan."""
    start = places(data, rb"\xff\xda")[0]
    return start + 2 + int.from_bytes(data[start + 2 : start + 4]) - 3


def samsung(data: bytes) -> bytes:
    return patched(data, scan_parameters(data), b"\0\0\0")


def jfif_2(data: bytes) -> bytes:
    return patched(data, data.index(b"JFIF\0") + 5, b"\2")


# 1. All pixels are there

HARMLESS = {
    "Samsung's scan header": (samsung, "Invalid SOS parameters"),
    "JFIF 2.01": (jfif_2, "unknown JFIF revision number 2.01"),
    "both": (lambda data: samsung(jfif_2(data)), "unknown JFIF revision"),
    "bytes before the first segment": (lambda data: inserted(data, 2, b"\0\1\2"), "3 extraneous bytes"),
    "bytes between segments": (lambda data: inserted(data, places(data, rb"\xff\xdb")[0], b"\0\xff\0"), "extraneous"),
    "bytes before the first scan": (lambda data: inserted(data, places(data, rb"\xff\xda")[0], b"ab"), "extraneous"),
    "bytes before the end": (lambda data: inserted(data, len(data) - 2, b"\1\2\3"), None),  # warned of, or not seen
    "bytes after the end": (lambda data: data + b"\xff\xd8junk", ""),
    "a damaged ICC profile": (lambda data: inserted(data, 2, segment(0xE2, b"ICC_PROFILE\0\5\2" + bytes(20))), "bad ICC"),
    "a profile in parts, one missing": (
        lambda data: inserted(data, 2, segment(0xE2, b"ICC_PROFILE\0\1\3" + bytes(200))), "bad ICC",
    ),
    "damaged EXIF": (lambda data: inserted(data, 2, segment(0xE1, b"Exif\0\0no directory at all")), ""),
    "an empty APP1": (lambda data: inserted(data, 2, segment(0xE1, b"")), ""),
    "a damaged Photoshop block": (lambda data: inserted(data, 2, segment(0xED, b"Photoshop 3.0\0" + bytes(9))), ""),
    "no end marker": (lambda data: data[:-2], "Premature end"),
    "half an end marker": (lambda data: data[:-1], "Premature end"),
}  # fmt: skip


def concerns(damage: str, variant: str) -> bool:
    """Pillow's CMYK files have no JFIF header; in progressive files scan headers and the end mean something."""
    if variant == "progressive":
        return "end marker" not in damage and damage not in ("Samsung's scan header", "both")
    return variant != "CMYK" or ("JFIF" not in damage and damage != "both")


@pytest.mark.parametrize(("variant", "damage"), [(v, d) for v in VARIANTS for d in HARMLESS if concerns(d, v)])
def test_what_does_not_concern_pixels(variant, damage):
    change, warning = HARMLESS[damage]
    data = VARIANTS[variant]
    whole, image = decode_image(data), decode_image(change(data))
    assert (image.pixels == whole.pixels).all()
    assert (image.format, image.kind, whole.warning) == ("JPEG", whole.kind, "")
    assert warning is None or (warning in image.warning and bool(image.warning) == bool(warning))


def test_extraneous_bytes_within_scans():
    warned = 0
    for data, marker in ((PROGRESSIVE, rb"\xff\xda"), (PROGRESSIVE, rb"\xff\xc4"), (RESTARTS, rb"\xff[\xd0-\xd7]")):
        whole = decode_image(data).pixels
        first_scan = places(data, rb"\xff\xda")[0]
        found = [place for place in places(data, marker) if place > first_scan]
        assert len(found) > 3
        for place in found[:8]:
            image = decode_image(inserted(data, place, b"\1\2"))
            warned += "2 extraneous bytes" in image.warning  # at some places they are in libjpeg's buffer by then
            assert (image.pixels == whole).all()
    assert warned > 10


def test_orientation_and_size_behind_what_is_passed_over(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    data = inserted(inserted(jfif_2(BASELINE), 2, segment(0xE1, exif.tobytes())), 2, b"\0\1")
    assert decode_image(data).pixels.shape == (COLUMNS, ROWS, 3)
    (tmp_path / "a.jpg").write_bytes(data)
    assert read_size(tmp_path / "a.jpg") == (COLUMNS, ROWS)
    # The header of the frame lies far behind.
    (tmp_path / "a.jpg").write_bytes(inserted(data, 4, 5 * segment(0xE5, bytes(60_000))))
    assert read_size(tmp_path / "a.jpg") == (COLUMNS, ROWS)


# 2. Pixels are missing


def corrupted(data: bytes) -> bytes:
    """Bits in the middle of the scan that are no code."""
    middle = (scan_parameters(data) + len(data)) // 2
    return patched(data, middle, b"\xff\x00" * 8)


MISSING = {
    "cut": lambda data: data[:-60],
    "cut, with an end marker": lambda data: data[:-60] + b"\xff\xd9",
    "cut, with bytes and an end marker": lambda data: data[:-60] + b"\0\0\xff\xd9",
    "no code": corrupted,
}


@pytest.mark.parametrize("harmless", [None, *(damage for damage in HARMLESS if " end" not in damage)])
@pytest.mark.parametrize("missing", MISSING)
def test_missing_pixels_are_damage_whatever_else_is_warned_of(missing, harmless):
    """libjpeg tells of the first thing that it warns of alone."""
    change = HARMLESS[harmless][0] if harmless else lambda data: data
    data = change(MISSING[missing](BASELINE))
    with pytest.raises(UnreadableImage, match="damaged JPEG"):
        decode_image(data)


def test_a_missing_part_between_restarts():
    found = places(RESTARTS, rb"\xff[\xd0-\xd7]")
    without = RESTARTS[: found[2]] + RESTARTS[found[3] :]
    for data in (without, jfif_2(without), inserted(without, found[1], b"\1\2")):
        with pytest.raises(UnreadableImage, match="damaged JPEG"):
            decode_image(data)


def test_progressive_files_that_end_early():
    for data in (PROGRESSIVE[:-2], PROGRESSIVE[:-100], jfif_2(PROGRESSIVE[:-100])):
        with pytest.raises(UnreadableImage, match="damaged JPEG"):
            decode_image(data)


def test_not_jpeg_beyond_the_signature():
    for data in (b"\xff\xd8\xff", b"\xff\xd8\xff\xd9", b"\xff\xd8\xff\xe0\0\0", b"\xff\xd8" + segment(0xE1, b"x" * 9)):
        with pytest.raises(UnreadableImage, match="damaged JPEG"):
            decode_image(data)


def test_a_good_file_is_decoded_once(monkeypatch):
    """The second look costs nothing where there is nothing to see."""
    monkeypatch.setattr("selfpatch.data.reading.jpeg._tidied", lambda _: pytest.fail("looked at twice"))
    assert isinstance(decode_image(BASELINE), DecodedImage)
