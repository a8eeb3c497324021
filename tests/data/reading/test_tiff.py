"""TIFF files of every kind give the pixels that the specification means, or are refused: a table of them all."""

import contextlib
import itertools
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from selfpatch.data.reading.decode import UnreadableImage, decode_image, read_image, read_size
from tests.data.reading.made_files import directory, tiff_bytes, tiff_header

WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, CMYK, YCBCR = 0, 1, 2, 3, 5, 6
CHANNELS = {WHITE_IS_ZERO: 1, BLACK_IS_ZERO: 1, RGB: 3, PALETTE: 1, CMYK: 4, YCBCR: 3}
ROWS, COLUMNS = 7, 10
SIGNED, FLOAT = {339: (2,)}, {339: (3,)}


def made(bits: int, channels: int) -> np.ndarray:
    """Smooth, from nothing to full in every channel, and different in each."""
    y, x = np.mgrid[0:ROWS, 0:COLUMNS]
    steps = [x / (COLUMNS - 1), y / (ROWS - 1), (x + y) / (COLUMNS + ROWS - 2), 1 - x / (COLUMNS - 1), y % 2]
    return np.stack([np.floor(step * (2**bits - 1) + 0.5) for step in steps[:channels]], -1).astype(np.int64)


def color_map(bits: int) -> tuple[int, ...]:
    """As TIFF has it: all reds, all greens, all blues, of 16 bits."""
    return tuple(257 * (factor * i % 256) for factor in (3, 5, 7) for i in range(2**bits))


def expected(samples: np.ndarray, bits: int, photometric: int) -> np.ndarray:
    """The rule, in floating point: full is 255."""
    full = 2**bits - 1
    unit = samples / full
    if photometric == PALETTE:
        return np.stack([(factor * samples[..., 0]) % 256 for factor in (3, 5, 7)], -1)
    if photometric == WHITE_IS_ZERO:
        unit = 1 - unit
    if photometric in (WHITE_IS_ZERO, BLACK_IS_ZERO):
        unit = np.repeat(unit, 3, -1)
    if photometric == CMYK:
        unit = (1 - unit[..., :3]) * (1 - unit[..., 3:])
    if photometric == YCBCR:
        luma, blue, red = unit[..., 0], unit[..., 1] - 128 / 255, unit[..., 2] - 128 / 255
        unit = np.stack([luma + 1.402 * red, luma - 0.344136 * blue - 0.714136 * red, luma + 1.772 * blue], -1)
    return np.rint(255 * unit.clip(0, 1))


BITS = {WHITE_IS_ZERO: (1, 2, 4, 8, 12, 16), BLACK_IS_ZERO: (1, 2, 4, 8, 12, 16), RGB: (8, 12, 16), PALETTE: (1, 2, 4, 8),
        CMYK: (8, 16), YCBCR: (8,)}  # fmt: skip
TABLE = [
    (bits, photometric, planar, byte_order, compression)
    for photometric in BITS
    for bits, planar, byte_order, compression in itertools.product(
        BITS[photometric], (False, True), "<>", ("none", "lzw", "deflate", "packbits")
    )
    if not (planar and CHANNELS[photometric] == 1)
]


def is_refused(bits: int, photometric: int, planar: bool, byte_order: str, compression: str) -> bool:
    """Of compressed files, kinds that Pillow does not know."""
    if compression == "none":
        return False
    if bits == 12:
        return photometric != BLACK_IS_ZERO or byte_order == ">"
    return bits == 16 and photometric == WHITE_IS_ZERO and byte_order == ">"


@pytest.mark.parametrize(("bits", "photometric", "planar", "byte_order", "compression"), TABLE)
def test_table(bits, photometric, planar, byte_order, compression):
    samples = made(bits, CHANNELS[photometric])
    tags = {320: color_map(bits)} if photometric == PALETTE else {530: (1, 1)} if photometric == YCBCR else {}
    data = tiff_bytes(
        samples, bits, photometric, planar=planar, byte_order=byte_order, compression=compression, tags=tags
    )
    if is_refused(bits, photometric, planar, byte_order, compression):
        with pytest.raises(UnreadableImage, match="unusual kind of pixels"):
            decode_image(data)
        return
    pixels = decode_image(data).pixels
    tolerance = 2 if photometric == YCBCR else 1 if bits > 8 or photometric == CMYK else 0
    assert np.abs(pixels - expected(samples, bits, photometric)).max() <= tolerance


# 1. Siblings: bit order, alpha, other samples


@pytest.mark.parametrize("bits", [1, 4, 8, 12, 16])
def test_bits_in_reversed_order(bits):
    samples = made(bits, 1)
    data = tiff_bytes(samples, bits, BLACK_IS_ZERO, reversed_bits=True)
    assert np.abs(decode_image(data).pixels - expected(samples, bits, BLACK_IS_ZERO)).max() <= (bits > 8)


@pytest.mark.parametrize("compression", ["none", "deflate"])
@pytest.mark.parametrize("planar", [False, True])
@pytest.mark.parametrize("meaning", [0, 1, 2, None])
@pytest.mark.parametrize("bits", [8, 16])
def test_the_fourth_sample_of_rgb(bits, meaning, planar, compression):
    """0: means nothing. 1: alpha, by which colors are multiplied. 2: alpha. Without a word: alpha."""
    samples, full = made(bits, 4), 2**bits - 1
    if meaning == 1:
        samples[..., :3] = samples[..., :3] * samples[..., 3:] // full
    tags = {} if meaning is None else {338: (meaning,)}
    data = tiff_bytes(samples, bits, RGB, tags=tags, planar=planar, compression=compression)
    if (planar, meaning, compression) == (True, None, "deflate"):  # which Pillow takes for something else
        with pytest.raises(UnreadableImage, match="does not say what the fourth is"):
            decode_image(data)
        return
    pixels = decode_image(data).pixels
    color, alpha = samples[..., :3] / full, samples[..., 3:] / full
    over_white = {0: color, 1: color + 1 - alpha}.get(meaning, color * alpha + 1 - alpha)
    # Pillow divides by alpha in 8 bits and multiplies again.
    assert np.abs(pixels - 255 * over_white).max() <= (3 if meaning == 1 else 2)


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("meaning", [0, 1, 2])
def test_the_second_sample_of_gray(bits, meaning):
    samples, full = made(bits, 2), 2**bits - 1
    if meaning == 1:
        samples[..., :1] = samples[..., :1] * samples[..., 1:] // full
    pixels = decode_image(tiff_bytes(samples, bits, BLACK_IS_ZERO, tags={338: (meaning,)})).pixels
    gray, alpha = samples[..., :1] / full, samples[..., 1:] / full
    over_white = {0: gray, 1: gray + 1 - alpha, 2: gray * alpha + 1 - alpha}[meaning]
    assert np.abs(pixels - 255 * over_white).max() <= (3 if meaning == 1 else 2)


@pytest.mark.parametrize("byte_order", "<>")
@pytest.mark.parametrize("compression", ["none", "deflate"])
@pytest.mark.parametrize(("bits", "kind"), [(8, SIGNED), (16, SIGNED), (32, SIGNED), (32, FLOAT), (32, {})])
@pytest.mark.parametrize("photometric", [BLACK_IS_ZERO, RGB])
def test_samples_without_a_known_range_are_refused(bits, kind, photometric, compression, byte_order):
    samples = made(4, CHANNELS[photometric]) - (8 if kind == SIGNED else 0)
    data = tiff_bytes(
        samples.astype(float) if kind == FLOAT else samples, bits, photometric, compression=compression,
        byte_order=byte_order, tags={tag: values * CHANNELS[photometric] for tag, values in kind.items()},
    )  # fmt: skip
    with pytest.raises(UnreadableImage, match="convert them to 8 or 16 bits"):
        decode_image(data)


@pytest.mark.parametrize("bits", [8, 16])
def test_five_channels_are_refused(bits):
    with pytest.raises(UnreadableImage, match="unusual kind of pixels"):
        decode_image(tiff_bytes(made(bits, 5), bits, BLACK_IS_ZERO, tags={338: (0, 0, 0, 0)}))


def test_a_palette_of_8_bit_colors():
    samples = made(4, 1)
    data = tiff_bytes(samples, 4, PALETTE, tags={320: tuple(value // 257 for value in color_map(4))})
    assert (decode_image(data).pixels == expected(samples, 4, PALETTE)).all()


# 2. Pages, pyramids, tiles, orientation


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("later", [{}, {"subfiletype": 1}])
def test_the_first_page_counts(tmp_path, bits, later):
    tifffile = pytest.importorskip("tifffile")
    samples = made(bits, 3).astype(f"u{bits // 8}")
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(samples, photometric="rgb", subifds=1, metadata=None)
        file.write(255 - samples[::2, ::2], photometric="rgb", subfiletype=1, metadata=None)
        file.write(255 - samples, photometric="rgb", metadata=None, **later)
    assert np.abs(read_image(tmp_path / "a.tif") - expected(samples, bits, RGB)).max() <= 1
    assert read_size(tmp_path / "a.tif") == (ROWS, COLUMNS)


@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_tiles_of_16_bits(tmp_path, big, planar):
    tifffile = pytest.importorskip("tifffile")
    samples = np.random.default_rng(0).integers(0, 65536, (40, 50, 3), dtype=np.uint16)
    stored = samples if planar == "contig" else np.moveaxis(samples, -1, 0)
    tifffile.imwrite(
        tmp_path / "a.tif", stored, photometric="rgb", planarconfig=planar, tile=(16, 16), bigtiff=big, byteorder=">"
    )
    assert np.abs(read_image(tmp_path / "a.tif") - expected(samples, 16, RGB)).max() <= 1


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(
    ("bits", "compression"), [(8, "none"), (12, "none"), (16, "none"), (16, "deflate"), (8, "lzw")]
)
def test_upright(tmp_path, bits, compression, orientation):
    samples = made(bits, 1)
    (tmp_path / "a.tif").write_bytes(
        tiff_bytes(samples, bits, BLACK_IS_ZERO, compression=compression, tags={274: (orientation,)})
    )
    turn = {1: "", 2: "h", 3: "r2", 4: "v", 5: "t", 6: "r3", 7: "a", 8: "r1"}[orientation]
    stored = expected(samples, bits, BLACK_IS_ZERO)
    shown = {
        "": stored, "h": stored[:, ::-1], "v": stored[::-1], "t": stored.swapaxes(0, 1),
        "a": stored[::-1, ::-1].swapaxes(0, 1), "r1": np.rot90(stored), "r2": np.rot90(stored, 2),
        "r3": np.rot90(stored, 3),
    }[turn]  # fmt: skip
    pixels = read_image(tmp_path / "a.tif")
    assert np.abs(pixels - shown).max() <= 1
    assert read_size(tmp_path / "a.tif") == pixels.shape[:2]


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK", "YCbCr"])
def test_jpeg_inside(tmp_path, mode):
    image = Image.fromarray(made(8, 3).astype(np.uint8)).resize((40, 32)).convert(mode)
    image.save(tmp_path / "a.tif", compression="jpeg", quality=95)
    with Image.open(tmp_path / "a.tif") as opened:
        by_pillow = np.asarray(opened.convert("RGB"))
    assert np.abs(read_image(tmp_path / "a.tif").astype(int) - by_pillow).max() <= 1


# 3. Damage


@pytest.mark.parametrize("bits", [12, 16])
def test_pixels_that_are_missing(bits):
    """The directory stands before the pixels, so that files can be cut."""
    entries = {
        256: ("I", (COLUMNS,)), 257: ("I", (ROWS,)), 258: ("H", (bits,) * 3), 259: ("H", (1,)), 262: ("H", (RGB,)),
        273: ("I", (1000,)), 277: ("H", (3,)), 278: ("I", (ROWS,)), 279: ("I", (ROWS * -(-COLUMNS * 3 * bits // 8),)),
    }  # fmt: skip
    count = entries[279][1][0]
    head = (tiff_header("<", 8) + directory(entries, "<", 8)).ljust(1000, b"\0")
    assert decode_image(head + bytes(count)).pixels.shape == (ROWS, COLUMNS, 3)
    for length in (0, 1, count // 2, count - 1):
        with pytest.raises(UnreadableImage, match="damaged TIFF"):
            decode_image(head + bytes(length))
    for wrong in (0, 1, count // 2):
        short = {**entries, 279: ("I", (wrong,))}
        with pytest.raises(UnreadableImage, match="damaged TIFF"):
            decode_image((tiff_header("<", 8) + directory(short, "<", 8)).ljust(1000, b"\0") + bytes(count))


def test_claimed_size_is_judged_before_decoding():
    data = bytearray(tiff_bytes(made(16, 1), 16, BLACK_IS_ZERO))
    entry = data.index(b"\x00\x01\x04\x00\x01\x00\x00\x00")  # tag 256, the width
    data[entry + 8 : entry + 12] = (2**30).to_bytes(4, "little")
    with pytest.raises(UnreadableImage, match="more than 178,956,970"):
        decode_image(bytes(data))


def test_nothing_is_printed(tmp_path, capfd):
    """tifffile logs what is odd."""
    data = tiff_bytes(made(16, 1), 16, BLACK_IS_ZERO, tags={339: (1, 1, 1), 700: (1, 2, 3)})
    for length in range(0, len(data), 3):
        Path(tmp_path / "a.tif").write_bytes(data[:length])
        with contextlib.suppress(UnreadableImage):
            # Only what comes after the pixels and where they are may be missing.
            assert np.abs(read_image(tmp_path / "a.tif") - expected(made(16, 1), 16, BLACK_IS_ZERO)).max() <= 1
            assert length > len(data) - 16
    assert capfd.readouterr() == ("", "")
