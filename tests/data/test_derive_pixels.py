"""Channels, depth and range of values that follow from the images; and what is refused because images differ."""

from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from selfpatch.config import ImagesConfig, PixelFormat
from selfpatch.data.derive_pixels import derive_pixels, measure_channels
from selfpatch.data.image_folder import ImageFolder
from selfpatch.data.shown_colors import shown_colors
from selfpatch.errors import UserError


def save(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, array)
    elif path.suffix == ".tif":
        separate = {"photometric": "minisblack", "planarconfig": "separate"} if array.shape[0] == 4 else {}
        tifffile.imwrite(path, array, **separate)
    else:
        Image.fromarray(array).save(path)


def derived(folder: Path, num_channels: int | None = None, **settings) -> dict:
    found = derive_pixels(ImageFolder(folder), num_channels, ImagesConfig(**settings))
    return {name: value for name, (value, _) in found.items()}


def noise(*shape: int, dtype: str = "uint8", high: int | None = None, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, high or np.iinfo(dtype).max + 1, shape).astype(dtype)


def test_gray_color_palettes_and_transparency_of_8_bits_are_rgb(tmp_path):
    save(tmp_path / "a.jpg", noise(40, 40, 3))
    save(tmp_path / "b.png", noise(40, 40))
    save(tmp_path / "c.png", noise(40, 40, 4))
    Image.fromarray(noise(40, 40, 3)).convert("P").save(tmp_path / "d.gif")
    Image.fromarray(noise(40, 40, 3)).convert("CMYK").save(tmp_path / "e.jpg")
    save(tmp_path / "f.npy", noise(40, 40))
    assert derived(tmp_path) == {}
    assert derived(tmp_path, 3) == {}


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (noise(9, 40, 40, dtype="uint16"), (9, 16, None)),
        (noise(9, 40, 40, dtype="uint16", high=4096), (9, 16, (0, 4095))),
        (noise(40, 40, dtype="uint16", high=2**14), (1, 16, (0, 2**14 - 1))),
        (noise(40, 40, 3, dtype="uint16"), (3, 16, None)),
        (noise(5, 40, 40), (5, 8, None)),
        (noise(40, 40, 2), (2, 8, None)),
    ],
)
@pytest.mark.parametrize("ending", [".tif", ".npy"])
def test_of_one_kind(tmp_path, array, expected, ending):
    save(tmp_path / f"a{ending}", array)
    names = ("backbone.num-channels", "images.bit-depth", "images.value-range")
    assert derived(tmp_path) == {name: value for name, value in zip(names, expected, strict=True) if value is not None}


def test_range_of_floating_point_without_outliers(tmp_path):
    for index in range(3):
        values = np.random.default_rng(index).uniform(-2, 2 + index, (100, 100, 4)).astype(np.float32)
        values[0, 0], values[0, 1] = 1e9, np.inf
        save(tmp_path / f"{index}.npy", values)
    low, high = derived(tmp_path)["images.value-range"]
    assert low == pytest.approx(-2, abs=0.02)
    assert high == pytest.approx(4, abs=0.02)
    assert "images.value-range" not in derived(tmp_path, value_range=(0.0, 1.0))


def test_images_that_differ_in_channels(tmp_path):
    save(tmp_path / "a.tif", noise(9, 40, 40, dtype="uint16"))
    save(tmp_path / "b.tif", noise(9, 40, 40, dtype="uint16"))
    save(tmp_path / "c.tif", noise(4, 40, 41, dtype="uint16"))
    with pytest.raises(UserError, match=r"differ in their number of channels: 2 of 9 \([ab].tif\); 1 of 4 \(c.tif\)"):
        derived(tmp_path)
    assert derived(tmp_path, 9) == {"images.bit-depth": 16}
    with pytest.raises(UserError, match="backbone.num-channels is 7, and the images have 16-bit, 9 channels"):
        derived(tmp_path, 7)


def test_images_that_differ_in_bit_depth(tmp_path):
    save(tmp_path / "a.tif", noise(40, 40, dtype="uint16"))
    save(tmp_path / "b.png", noise(40, 40))
    with pytest.raises(UserError, match=r"differ in bit depth: 1 of (16|8) bits.*--images.bit-depth 8 scales each"):
        derived(tmp_path)
    assert derived(tmp_path, bit_depth=8) == {}  # as 8-bit RGB
    assert derived(tmp_path, bit_depth=16) == {"backbone.num-channels": 1}
    assert derived(tmp_path, value_range=(0.0, 255.0)) == {"backbone.num-channels": 1, "images.bit-depth": 16}


def test_mean_and_std_of_each_channel(tmp_path):
    everything = []
    for index in range(5):
        array = noise(30, 40, 4, dtype="uint16", seed=index) // np.array([1, 2, 3, 4], np.uint16)
        save(tmp_path / f"{index}.npy", array)
        everything.append(array.reshape(-1, 4) / 65535)
    found = measure_channels(ImageFolder(tmp_path, pixels=PixelFormat(4, "float32")))
    assert found is not None
    np.testing.assert_allclose(found.mean, np.concatenate(everything).mean(axis=0), atol=2e-6)
    np.testing.assert_allclose(found.std, np.concatenate(everything).std(axis=0), atol=2e-6)


def test_three_channels_are_shown_each_in_its_own_range():
    image = np.zeros((10, 10, 9), np.float32)
    image[:5, :, 7] = 0.01
    image[:, :5, 1] = 0.8
    shown = shown_colors(image, (7, 1, 0))
    assert (shown[:5, :, 0].min(), shown[5:, :, 0].max()) == (255, 0)
    assert (shown[:, :5, 1].min(), shown[:, 5:, 1].max()) == (255, 0)
    assert (shown[..., 2] == 0).all()  # constant
    gray = shown_colors(np.linspace(0, 1, 100, dtype=np.float32).reshape(10, 10, 1))
    assert np.array_equal(gray[..., 0], gray[..., 2])
    rgb = noise(10, 10, 3)
    assert shown_colors(rgb) is rgb
