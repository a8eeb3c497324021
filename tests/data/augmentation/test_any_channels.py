"""Crops and colors of images that are not 8-bit RGB: the same geometry, and what of the colors applies to them."""

import numpy as np
import pytest
import torch

from selfpatch.config import RGB_8, CropsConfig, PixelFormat
from selfpatch.data.augmentation.color_augmentation import apply_color, jitter_colors
from selfpatch.data.augmentation.geometry import CropBox, resized_crop
from selfpatch.data.augmentation.multi_crop import MultiCrop
from selfpatch.data.augmentation.normalize import normalize
from selfpatch.data.augmentation.params import (
    BRIGHTNESS,
    CONTRAST,
    HUE,
    SATURATION,
    ColorParams,
    JitterParams,
    sample_color_params,
)
from tests.data.augmentation.photographs import photograph

NO_JITTER = JitterParams(1.0, 1.0, 1.0, 0.0, (BRIGHTNESS, CONTRAST))


def values(channels: int, *, seed: int = 0, rows: int = 60, columns: int = 80) -> np.ndarray:
    return np.random.default_rng(seed).random((rows, columns, channels), dtype=np.float32)


@pytest.mark.parametrize("channels", [1, 2, 3, 5, 9, 32])
@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_every_channel_is_cropped_as_if_it_were_alone(channels, dtype):
    image = values(channels) if dtype == "float32" else (255 * values(channels)).astype(np.uint8)
    box = CropBox(5, 7, 40, 50)
    crop = resized_crop(image, box, True, (24, 32))
    assert crop.shape == (24, 32, channels)
    assert crop.dtype == image.dtype
    for channel in range(channels):
        alone = resized_crop(np.ascontiguousarray(image[..., channel : channel + 1]), box, True, (24, 32))
        # Levels of 8 bits: torch has two kernels, which round differently.
        np.testing.assert_allclose(crop[..., channel], alone[..., 0], atol=1e-6 if dtype == "float32" else 1)


def test_values_are_cropped_like_levels_and_stay_in_range():
    image = photograph(1, 80, 100)
    box = CropBox(10, 3, 60, 70)
    levels = resized_crop(image, box, False, (32, 48)).astype(np.float32)
    fine = resized_crop(image.astype(np.float32) / 255, box, False, (32, 48))
    assert np.abs(255 * fine - levels).max() <= 1.01
    edges = np.kron(np.indices((8, 8)).sum(axis=0) % 2, np.ones((8, 8)))[..., None].astype(np.float32)
    enlarged = resized_crop(edges, CropBox(0, 0, 64, 64), False, (96, 96))
    assert (enlarged.min(), enlarged.max()) == (0, 1)  # bicubic interpolation overshoots both


def test_more_than_256_levels_survive():
    image = np.tile(np.linspace(0.5, 0.51, 4096, dtype=np.float32), (64, 1))[..., None]
    crop = resized_crop(image, CropBox(0, 0, 64, 4096), False, (32, 2048))
    assert len(np.unique(crop)) > 1000


@pytest.mark.parametrize("channels", [1, 2, 7])
def test_jitter_in_other_words(channels):
    image = values(channels)
    jitter = JitterParams(1.3, 0.7, 9.9, 0.4, (CONTRAST, BRIGHTNESS), tuple(np.linspace(0.8, 1.2, channels)))
    expected = np.empty_like(image)
    for channel in range(channels):
        plane = image[..., channel].astype(np.float64)
        plane = np.clip(plane.mean() + 0.7 * (plane - plane.mean()), 0, 1)
        plane = np.clip(1.3 * plane, 0, 1)
        expected[..., channel] = np.clip(jitter.gains[channel] * plane, 0, 1)
    np.testing.assert_allclose(jitter_colors(image, jitter), expected, atol=1e-6)
    levels = np.rint(255 * image).astype(np.uint8)
    assert np.abs(jitter_colors(levels, jitter) - 255 * expected).max() <= 4  # three times rounded down


def test_rgb_values_are_jittered_like_rgb_levels():
    image = photograph(2, 60, 80)
    for order in ((HUE, SATURATION, CONTRAST, BRIGHTNESS), (BRIGHTNESS, HUE, CONTRAST, SATURATION)):
        jitter = JitterParams(1.1, 0.9, 1.15, 0.07, order)
        levels = jitter_colors(image, jitter).astype(np.float64)
        fine = jitter_colors(image.astype(np.float32) / 255, jitter)
        difference = np.abs(255 * fine - levels)
        assert difference.mean() < 2.5  # hue has 256 levels there
        assert np.percentile(difference, 99) < 12


@pytest.mark.parametrize("channels", [1, 2, 9])
def test_blur_and_solarize_take_any_channels(channels):
    image = values(channels)
    blurred = apply_color(image, ColorParams(None, False, 1.5, False))
    assert blurred.shape == image.shape
    assert blurred.std() < 0.5 * image.std()
    np.testing.assert_allclose(blurred.mean(axis=(0, 1)), image.mean(axis=(0, 1)), atol=0.02)
    alone = apply_color(np.ascontiguousarray(image[..., :1]), ColorParams(None, False, 1.5, False))
    np.testing.assert_allclose(blurred[..., :1], alone, atol=1e-6)
    solarized = apply_color(image, ColorParams(None, False, None, True))
    np.testing.assert_array_equal(solarized, np.where(image < 0.5, image, 1 - image))


def test_hue_saturation_and_gray_are_for_rgb_alone():
    config = CropsConfig(color_jitter_prob=1.0, grayscale_prob=1.0, channel_gain=0.3)
    rng = np.random.default_rng(0)
    for _ in range(50):
        params = sample_color_params(rng, config, 1, PixelFormat(9, "float32"))
        assert params.jitter is not None
        assert sorted(params.jitter.order) == [BRIGHTNESS, CONTRAST]
        assert not params.grayscale
        assert len(params.jitter.gains) == 9
        assert all(0.7 <= gain <= 1.3 for gain in params.jitter.gains)
    deep_rgb = sample_color_params(rng, config, 1, PixelFormat(3, "float32"))
    assert deep_rgb.jitter is not None
    assert (len(deep_rgb.jitter.order), deep_rgb.jitter.gains, deep_rgb.grayscale) == (4, (), True)


def test_8_bit_rgb_draws_the_numbers_that_it_drew_before():
    config, seen = CropsConfig(), []
    for pixels in (RGB_8, PixelFormat(3, "float32")):
        multi_crop = MultiCrop(config, pixels=pixels)
        seen.append(multi_crop.sample_params(np.random.default_rng(3), 300, 400))
    assert seen[0] == seen[1]


@pytest.mark.parametrize("pixels", [PixelFormat(9, "float32"), PixelFormat(4), PixelFormat(1, "float32")])
def test_crops_are_a_pure_function_of_image_and_random_numbers(pixels):
    config = CropsConfig(global_size=32, local_size=16, num_local=2)
    image = values(pixels.num_channels)
    image = image if pixels.dtype == "float32" else (255 * image).astype(np.uint8)
    multi_crop = MultiCrop(config, pixels=pixels)
    one, other = (multi_crop(image, np.random.default_rng(5)) for _ in range(2))
    assert one.global_crops.shape == (2, 1, pixels.num_channels, 32, 32)
    assert one.global_crops.dtype == getattr(torch, pixels.dtype)
    assert torch.equal(one.global_crops, other.global_crops)
    assert one.local_crops is not None
    assert one.local_crops.shape == (2, 1, pixels.num_channels, 16, 16)


def test_values_and_levels_are_normalized_alike():
    levels = torch.randint(0, 256, (2, 4, 8, 8), dtype=torch.uint8)
    mean, std = (0.1, 0.2, 0.3, 0.4), (0.5, 0.6, 0.7, 0.8)
    fine = levels / 255
    kept = fine.clone()
    torch.testing.assert_close(normalize(levels, mean, std), normalize(fine, mean, std), atol=1e-5, rtol=0)
    assert torch.equal(fine, kept)
