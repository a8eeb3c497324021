"""Equal parameters give nearly Pillow's and torchvision's colors."""

import numpy as np
import pytest
from PIL import Image, ImageFilter

from selfpatch.data.augmentation.color_augmentation import apply_color, jitter_colors
from selfpatch.data.augmentation.geometry import CropBox
from selfpatch.data.augmentation.params import CropParams, JitterParams
from tests.data.augmentation.photographs import PHOTOGRAPHS, UNCHANGED, difference
from tests.reference.plain_augmentation import plain_crop


@pytest.mark.parametrize(("change", "most"), [(0, 0.01), (1, 0.01), (2, 0.05), (3, 1.0)])
def test_each_jitter(change, most):
    rng = np.random.default_rng(change)
    for i in range(20):
        factor, hue = rng.uniform(0.6, 1.4), rng.uniform(-0.1, 0.1)
        jitter = JitterParams(factor, factor, factor, hue, (change,))
        crop = CropParams(CropBox(0, 0, 375, 500), False, UNCHANGED._replace(jitter=jitter))
        image = PHOTOGRAPHS[i % 4]
        assert difference(jitter_colors(image, jitter), plain_crop(image, crop, (375, 500))) < most


def test_blur():
    for sigma in np.linspace(0.1, 2.0, 20).tolist():
        crop = CropParams(CropBox(0, 0, 375, 500), False, UNCHANGED._replace(blur_sigma=sigma))
        assert difference(apply_color(PHOTOGRAPHS[0], crop.color), plain_crop(PHOTOGRAPHS[0], crop, (375, 500))) < 0.8


def test_blur_of_a_checkerboard():
    board = (np.indices((32, 32)).sum(axis=0) // 3 % 2 * 255).astype(np.uint8)[..., None].repeat(3, axis=2)
    for sigma in (0.3, 0.7, 1.1, 1.9):
        blurred = np.asarray(Image.fromarray(board).filter(ImageFilter.GaussianBlur(sigma)))
        ours = apply_color(board, UNCHANGED._replace(blur_sigma=sigma))
        # Pillow continues the border anew before each of its three boxes, so the outermost pixels differ.
        assert np.abs(ours.astype(int) - blurred)[6:-6, 6:-6].max() <= 3
        assert difference(ours, blurred) < 2


def test_grayscale_and_solarize():
    for color in (UNCHANGED._replace(grayscale=True), UNCHANGED._replace(solarize=True)):
        crop = CropParams(CropBox(0, 0, 375, 500), False, color)
        assert difference(apply_color(PHOTOGRAPHS[0], color), plain_crop(PHOTOGRAPHS[0], crop, (375, 500))) < 0.01
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16)[..., None].repeat(3, axis=2)
    solarized = apply_color(levels, UNCHANGED._replace(solarize=True))[..., 0].ravel()
    np.testing.assert_array_equal(solarized, [*range(128), *range(127, -1, -1)])
