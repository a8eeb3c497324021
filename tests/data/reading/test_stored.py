"""Any channels and any depth: what a file stores reaches the run, wherever its writer put the channels."""

import io
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image

from selfpatch.config import PixelFormat
from selfpatch.data.reading.decode import UnreadableImage, read_image, read_size
from selfpatch.data.reading.stored import open_stored

DEEP_9 = PixelFormat(9, "float32")
CHANNELS_FIRST = np.random.default_rng(0).integers(0, 2**16, (9, 40, 50), dtype=np.uint16)
CHANNELS_LAST = np.moveaxis(CHANNELS_FIRST, 0, -1)


def written(path: Path, array: np.ndarray, **arguments) -> Path:
    tifffile.imwrite(path, array, **arguments)
    return path


@pytest.mark.parametrize(
    ("array", "arguments"),
    [
        (CHANNELS_FIRST, {}),
        (CHANNELS_LAST, {}),
        (CHANNELS_FIRST, {"photometric": "minisblack", "planarconfig": "separate"}),
        (CHANNELS_LAST, {"photometric": "minisblack", "planarconfig": "contig"}),
        (CHANNELS_LAST, {"photometric": "minisblack", "planarconfig": "contig", "tile": (16, 16), "metadata": None}),
        (CHANNELS_LAST, {"photometric": "minisblack", "planarconfig": "contig", "compression": "deflate", "predictor": 2}),
        (CHANNELS_FIRST, {"imagej": True}),
        (CHANNELS_FIRST, {"ome": True, "metadata": {"axes": "CYX"}}),
        (CHANNELS_FIRST, {"bigtiff": True, "byteorder": ">"}),
    ],
    ids=["pages", "last", "planes", "contiguous", "tiles", "deflate", "imagej", "ome", "big endian"],
)  # fmt: skip
def test_nine_channels_of_a_tiff_are_found_wherever_they_are(tmp_path, array, arguments):
    path = written(tmp_path / "a.tif", array, **arguments)
    assert read_size(path, DEEP_9) == (40, 50)
    pixels = read_image(path, DEEP_9)
    assert pixels.dtype == np.float32
    # Full depth: every one of the 65,536 levels comes back.
    assert np.array_equal(np.rint(pixels.astype(np.float64) * 65535), CHANNELS_LAST)


def test_pages_of_a_file_that_declares_no_array_are_channels_when_asked_for(tmp_path):
    path = written(tmp_path / "a.tif", CHANNELS_FIRST, metadata=None)
    assert open_stored(path.read_bytes()).num_channels == 1
    pixels = read_image(path, DEEP_9._replace(pages="channels"))
    assert np.array_equal(np.rint(pixels.astype(np.float64) * 65535), CHANNELS_LAST)
    first = read_image(path, PixelFormat(1, "float32"))
    assert np.array_equal(np.rint(first.astype(np.float64) * 65535)[..., 0], CHANNELS_FIRST[0])


def test_depth_and_time_of_a_stack_are_no_channels(tmp_path):
    stack = np.random.default_rng(0).integers(0, 2**16, (4, 5, 40, 50), dtype=np.uint16)  # Z C Y X
    path = written(tmp_path / "a.tif", stack, imagej=True)
    pixels = read_image(path, PixelFormat(5, "float32"))
    assert np.array_equal(np.rint(pixels.astype(np.float64) * 65535), np.moveaxis(stack[0], 0, -1))


@pytest.mark.parametrize("array", [CHANNELS_FIRST, CHANNELS_LAST, CHANNELS_LAST.astype(">u2")])
@pytest.mark.parametrize("ending", [".npy", ".npz"])
def test_numpy_files(tmp_path, array, ending):
    path = tmp_path / f"a{ending}"
    np.save(path, array) if ending == ".npy" else np.savez_compressed(path, array)
    assert read_size(path, DEEP_9) == (40, 50)
    assert np.array_equal(np.rint(read_image(path, DEEP_9).astype(np.float64) * 65535), CHANNELS_LAST)


def test_numpy_gray_and_rgb_of_8_bits_are_images_like_others(tmp_path):
    rgb = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    np.save(tmp_path / "rgb.npy", rgb)
    np.save(tmp_path / "gray.npy", rgb[..., 0])
    np.save(tmp_path / "first.npy", np.moveaxis(rgb, -1, 0))
    assert np.array_equal(read_image(tmp_path / "rgb.npy"), rgb)
    assert np.array_equal(read_image(tmp_path / "first.npy"), rgb)
    assert np.array_equal(read_image(tmp_path / "gray.npy"), np.repeat(rgb[..., :1], 3, axis=-1))


def test_16_bit_png_keeps_its_depth(tmp_path):
    rgb = np.random.default_rng(0).integers(0, 2**16, (40, 50, 3), dtype=np.uint16)
    cv2.imwrite(str(tmp_path / "rgb.png"), rgb[..., ::-1])
    cv2.imwrite(str(tmp_path / "gray.png"), rgb[..., 0])
    for name, channels, expected in (("rgb.png", 3, rgb), ("gray.png", 1, rgb[..., :1])):
        pixels = read_image(tmp_path / name, PixelFormat(channels, "float32"))
        assert np.array_equal(np.rint(pixels.astype(np.float64) * 65535), expected)


def test_alpha_shows_white_or_is_a_channel_as_many_channels_are_asked_for(tmp_path):
    rgba = np.random.default_rng(0).integers(0, 2**16, (40, 50, 4), dtype=np.uint16)
    cv2.imwrite(str(tmp_path / "a.png"), rgba[..., [2, 1, 0, 3]])
    four = read_image(tmp_path / "a.png", PixelFormat(4, "float32"))
    assert np.array_equal(np.rint(four.astype(np.float64) * 65535), rgba)
    three = read_image(tmp_path / "a.png", PixelFormat(3, "float32"))
    alpha = rgba[..., 3:] / 65535
    np.testing.assert_allclose(three, rgba[..., :3] / 65535 * alpha + (1 - alpha), atol=1e-6)


def test_12_bit_samples_are_scaled_by_their_own_depth(tmp_path):
    # A row of two 12-bit samples is three bytes: 0xABC and 0xFFF.
    path = written(tmp_path / "a.tif", np.zeros((4, 3), np.uint8), metadata=None)
    data = bytearray(path.read_bytes())
    with tifffile.TiffFile(io.BytesIO(bytes(data))) as file:
        page = file.pages[0]
        for name, value in (("ImageWidth", 2), ("BitsPerSample", 12)):
            place = page.tags[name].valueoffset
            data[place : place + 2] = value.to_bytes(2, "little")
        start = page.dataoffsets[0]
    data[start : start + 12] = bytes([0xAB, 0xCF, 0xFF] * 4)
    path.write_bytes(bytes(data))
    pixels = read_image(path, PixelFormat(1, "float32"))
    np.testing.assert_allclose(pixels[..., 0], [[0xABC / 4095, 1.0]] * 4, rtol=1e-6)


def test_floating_point_and_signed_numbers_need_a_range(tmp_path):
    values = np.random.default_rng(0).normal(300, 50, (40, 50, 2)).astype(np.float32)
    values[0, 0] = np.nan
    np.save(tmp_path / "a.npy", values)
    np.save(tmp_path / "b.npy", values[1:].astype(np.int16))
    with pytest.raises(UnreadableImage, match="range is not known; give it"):
        read_image(tmp_path / "a.npy", PixelFormat(2, "float32"))
    given = PixelFormat(2, "float32", value_range=(200.0, 400.0))
    expected = ((values - 200) / 200).clip(0, 1)
    np.testing.assert_allclose(read_image(tmp_path / "a.npy", given)[1:], expected[1:], atol=1e-6)
    assert (read_image(tmp_path / "a.npy", given)[0, 0] == 0).all()  # not a number: black
    np.testing.assert_allclose(read_image(tmp_path / "b.npy", given), expected[1:], atol=1 / 200 + 1e-6)


def test_bytes_of_any_channels_stay_bytes(tmp_path):
    values = np.random.default_rng(0).integers(0, 256, (40, 50, 5), dtype=np.uint8)
    np.save(tmp_path / "a.npy", values)
    assert np.array_equal(read_image(tmp_path / "a.npy", PixelFormat(5)), values)


def test_another_number_of_channels_is_refused(tmp_path):
    path = written(tmp_path / "a.tif", CHANNELS_FIRST)
    with pytest.raises(UnreadableImage, match=r"9 channels \(16-bit, 9 channels\), where images of 4 are read"):
        read_image(path, PixelFormat(4, "float32"))
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(UnreadableImage, match="1 channel "):
        read_image(tmp_path / "a.png", DEEP_9)


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (np.zeros((40, 50, 60), np.uint8), "an array of shape"),
        (np.zeros(40, np.uint8), "an array of shape"),
        (np.zeros((40, 50), bool), "an array of bool"),
        (np.zeros((40, 50), "U3"), "an array of str"),
        (np.array([[None, {}]], dtype=object), "never unpickled"),
    ],
)
def test_arrays_that_are_no_images(tmp_path, array, reason):
    np.save(tmp_path / "a.npy", array, allow_pickle=True)
    for pixels in (PixelFormat(), DEEP_9):
        with pytest.raises(UnreadableImage, match=reason):
            read_image(tmp_path / "a.npy", pixels)


def test_damaged_files_are_refused_with_a_reason(tmp_path):
    tiff = written(tmp_path / "a.tif", CHANNELS_LAST, photometric="minisblack", planarconfig="contig").read_bytes()
    np.save(tmp_path / "a.npy", CHANNELS_LAST)
    numpy = (tmp_path / "a.npy").read_bytes()
    for name, data in (("b.tif", tiff[: len(tiff) // 2]), ("b.npy", numpy[: len(numpy) // 2]), ("c.npz", b"PK\3\4 no")):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UnreadableImage):
            read_image(tmp_path / name, DEEP_9)
