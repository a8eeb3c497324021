"""PNG of every bit depth and color type: images as people see them, masks as the numbers that are stored."""

import struct

import numpy as np
import pytest
from PIL import Image

from selfpatch.data.reading.decode import UnreadableImage, decode_image
from selfpatch.data.reading.labels import read_stored_numbers, stored_size
from tests.data.reading.made_files import png_bytes, png_chunk

ROWS, COLUMNS = 13, 21  # no multiples of 8, so that no pass of an interlaced file is full
GRAY, RGB, PALETTE, GRAY_ALPHA, RGB_ALPHA = 0, 2, 3, 4, 6
CHANNELS = {GRAY: 1, RGB: 3, PALETTE: 1, GRAY_ALPHA: 2, RGB_ALPHA: 4}
TABLE = [(GRAY, 1), (GRAY, 2), (GRAY, 4), (GRAY, 8), (GRAY, 16), (RGB, 8), (RGB, 16), (PALETTE, 1), (PALETTE, 2),
         (PALETTE, 4), (PALETTE, 8), (GRAY_ALPHA, 8), (GRAY_ALPHA, 16), (RGB_ALPHA, 8), (RGB_ALPHA, 16)]  # fmt: skip
COLORS = np.array([((3 * i) % 256, (5 * i) % 256, (7 * i) % 256) for i in range(256)])


def stored(bits: int, channels: int = 1) -> np.ndarray:
    samples = np.random.default_rng(bits).integers(0, 2**bits, (ROWS, COLUMNS, channels))
    samples[0, 0], samples[0, 1] = 0, 2**bits - 1
    return samples


def palette_chunk(bits: int) -> bytes:
    return png_chunk(b"PLTE", COLORS[: 2**bits].astype(np.uint8).tobytes())


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize("transparent", [False, True])
@pytest.mark.parametrize("significant", [False, True])
@pytest.mark.parametrize(("color_type", "bits"), TABLE)
def test_images(color_type, bits, interlaced, transparent, significant):
    """`transparent`: tRNS makes one color, that of the pixel (2, 3), transparent. `significant`: sBIT has no effect."""
    samples, full = stored(bits, CHANNELS[color_type]), 2**bits - 1
    key = samples[2, 3]
    if color_type == RGB:  # its nearest neighbor is not meant
        samples[5, 5] = key ^ np.array([0, 0, 1])
    chunks = palette_chunk(bits) if color_type == PALETTE else b""
    if transparent and color_type == PALETTE:
        chunks += png_chunk(b"tRNS", bytes(255 * (i != key[0]) for i in range(2**bits)))
    elif transparent and color_type in (GRAY, RGB):
        chunks += png_chunk(b"tRNS", struct.pack(f">{len(key)}H", *key))
    if significant:
        chunks = png_chunk(b"sBIT", bytes([max(1, min(bits, 8) - 1)] * min(CHANNELS[color_type], 4))) + chunks

    if color_type == PALETTE:
        expected = COLORS[samples[..., 0]].astype(float)
    else:
        expected = np.broadcast_to(
            255 * samples[..., : 1 + 2 * (color_type in (RGB, RGB_ALPHA))] / full, (ROWS, COLUMNS, 3)
        )
    if color_type in (GRAY_ALPHA, RGB_ALPHA):
        alpha = samples[..., -1:] / full
        expected = expected * alpha + 255 * (1 - alpha)
    elif transparent:
        expected = np.where((samples == key).all(-1, keepdims=True), 255, expected)

    pixels = decode_image(png_bytes(samples, bits, color_type, interlaced=interlaced, chunks=(chunks,))).pixels
    tolerance = 2 if color_type in (GRAY_ALPHA, RGB_ALPHA) else 1 if (color_type, bits) == (RGB, 16) else 0.5
    assert np.abs(pixels - expected).max() <= tolerance


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize("more", ["", "sBIT", "tRNS", "eXIf"])
@pytest.mark.parametrize(("color_type", "bits"), [entry for entry in TABLE if entry[0] in (GRAY, PALETTE)])
def test_masks_give_the_stored_numbers(tmp_path, color_type, bits, interlaced, more):
    numbers = stored(bits)[..., 0]
    chunks = palette_chunk(bits) if color_type == PALETTE else b""
    exif = Image.Exif()
    exif[0x0112] = 6
    chunks += {
        "": b"",
        "sBIT": b"" if color_type == PALETTE else png_chunk(b"sBIT", bytes([max(1, min(bits, 8) - 1)])),
        "tRNS": png_chunk(b"tRNS", b"\0\1" if color_type == GRAY else b"\0\xff"[: 2**bits]),
        "eXIf": png_chunk(b"eXIf", exif.tobytes()[6:]),
    }[more]
    path = tmp_path / "mask.png"
    path.write_bytes(png_bytes(numbers, bits, color_type, interlaced=interlaced, chunks=(chunks,)))
    assert read_stored_numbers(path).tolist() == numbers.tolist()
    assert stored_size(path) == (ROWS, COLUMNS)


@pytest.mark.parametrize(("color_type", "bits"), [entry for entry in TABLE if entry[0] not in (GRAY, PALETTE)])
def test_color_pictures_are_no_masks(tmp_path, color_type, bits):
    path = tmp_path / "mask.png"
    path.write_bytes(png_bytes(stored(bits, CHANNELS[color_type]), bits, color_type))
    for read in (read_stored_numbers, stored_size):
        with pytest.raises(UnreadableImage, match="a color picture .*one number per pixel"):
            read(path)


@pytest.mark.parametrize(
    ("format_", "message"),
    [("JPEG", "a JPEG file, whose compression changes"), ("WEBP", "a WEBP file; masks are PNG"), ("TIFF", "a TIFF file"),
     ("BMP", "a BMP file"), ("GIF", "a GIF file"), ("PPM", "not a JPEG, PNG")],
)  # fmt: skip
def test_masks_are_png_by_content(tmp_path, format_, message):
    Image.fromarray(stored(8)[..., 0].astype(np.uint8)).save(tmp_path / "mask.png", format=format_)
    for read in (read_stored_numbers, stored_size):
        with pytest.raises(UnreadableImage, match=message):
            read(tmp_path / "mask.png")


def test_masks_cut_anywhere(tmp_path):
    numbers = stored(4)[..., 0]
    data = png_bytes(numbers, 4, GRAY)
    for length in range(len(data)):
        (tmp_path / "mask.png").write_bytes(data[:length])
        try:
            found = read_stored_numbers(tmp_path / "mask.png")
        except UnreadableImage:
            continue
        # Only checksums and what comes after the pixels may be missing.
        assert found.tolist() == numbers.tolist()
        assert length > len(data) - 24
