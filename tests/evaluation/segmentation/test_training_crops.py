import colorsys

import numpy as np
import pytest
import torch

from selfpatch.evaluation.metrics import IGNORED
from selfpatch.evaluation.protocols.linear_segmentation import LinearSegmentation
from selfpatch.evaluation.segmentation.training_crops import (
    blend_with_gray,
    collate,
    photometric_distortion,
    random_crop,
    rescale,
    scale_saturation,
    turn_hue_fully,
)
from tests.evaluation.labeled_scenes import COLORS, random_mask


def protocol(**settings) -> LinearSegmentation:
    return LinearSegmentation(image_size=32, stride=32, scale=(0.5, 2.0), **settings)


def test_very_long_images_are_limited_before_they_are_cropped():
    mask = np.arange(200, dtype=np.uint8)[None].repeat(10, axis=0)  # 20 times as long as high
    image = mask[..., None].repeat(3, axis=-1)
    for long_side, rows in ((128, 6), (None, 32)):
        settings = LinearSegmentation(image_size=32, stride=32, scale=(1.0, 1.0), long_side=long_side)
        crop = random_crop(image, mask, np.random.default_rng(0), settings, size=(64, 64))[1]
        assert crop.shape == (rows, 64)


def test_without_antialias_an_image_is_shrunk_from_the_nearest_pixels():
    image = np.zeros((32, 32, 3), np.uint8)
    image[::4, ::4] = 255  # a sixteenth of the pixels; of the four around the middle of 4 x 4 it is none
    assert rescale(image, (8, 8), antialias=False).max() == 0
    assert rescale(image, (8, 8), antialias=True).mean() == pytest.approx(255 / 16, abs=2)
    assert rescale(image, (16, 24), antialias=False).shape == (16, 24, 3)


def test_image_and_mask_stay_together():
    rng = np.random.default_rng(0)
    mask = random_mask(rng, (64, 96), 4, (32, 32))
    sizes = set()
    for seed in range(50):
        image, crop = random_crop(
            COLORS[mask], mask, np.random.default_rng(seed), protocol(cat_max_ratio=1.0), size=(32, 24)
        )
        assert image.shape[:2] == crop.shape and crop.shape[0] <= 32 and crop.shape[1] <= 24
        sizes.add(crop.shape)
        # Away from borders between classes the colours are those of the labels.
        distance = np.abs(image.astype(int) - COLORS[crop]).max(axis=-1)
        assert np.median(distance) == 0
    assert (32, 24) in sizes and len(sizes) > 1


def test_half_of_them_are_flipped_and_all_places_are_seen():
    mask = np.arange(32, dtype=np.uint8)[None].repeat(32, axis=0)
    image = mask[..., None].repeat(3, axis=-1)
    settings = LinearSegmentation(image_size=32, stride=32, scale=(1.0, 1.0), cat_max_ratio=1.0)
    crops = [random_crop(image, mask, np.random.default_rng(s), settings, size=(8, 8))[1] for s in range(300)]
    flipped = [int(crop[0, 0]) > int(crop[0, 1]) for crop in crops]
    assert 0.4 < np.mean(flipped) < 0.6
    assert {int(crop.min()) for crop in crops} == set(range(25))


def test_a_crop_of_one_class_is_drawn_again():
    mask = np.zeros((64, 64), np.uint8)
    mask[:, 56:] = 1
    mask[:, :8] = IGNORED
    image = COLORS[np.minimum(mask, 3)]
    settings = {"scale": (1.0, 1.0), "image_size": 64, "stride": 64}
    mixed = {}
    for share in (0.75, 1.0):
        chosen = LinearSegmentation(cat_max_ratio=share, **settings)
        crops = [random_crop(image, mask, np.random.default_rng(s), chosen, size=(16, 16))[1] for s in range(200)]
        mixed[share] = np.mean([(crop == 1).mean() > 0.25 for crop in crops])
    assert mixed[0.75] > 3 * mixed[1.0] > 0


def test_ten_crops_are_judged_and_the_eleventh_is_taken():
    class Counting(np.random.Generator):
        calls = 0

        def integers(self, high):
            self.calls += 1
            return 0

        def random(self):
            return 1.0

        def uniform(self, low, high):
            return 1.0

    mask = np.zeros((64, 64), np.uint8)
    rng = Counting(np.random.PCG64())
    random_crop(COLORS[mask], mask, rng, protocol(cat_max_ratio=0.75), size=(16, 16))
    assert rng.calls == 2 * 11


def test_an_image_that_no_draw_changes_stays_as_it_is():
    class Never(np.random.Generator):
        def random(self):
            return 0.9

    image = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    assert (photometric_distortion(image, Never(np.random.PCG64())) == image).all()  # through HSV and back it would not


def test_small_crops_are_filled_with_the_mean_colour_and_labels_that_do_not_count():
    image, mask = COLORS[[[0, 1], [2, 3]]], np.array([[0, 1], [2, 3]], np.uint8)
    images, masks = collate([(image, mask)], (3, 4), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), device=torch.device("cpu"))
    assert masks[0].tolist() == [[0, 1, IGNORED, IGNORED], [2, 3, IGNORED, IGNORED], [IGNORED] * 4]
    assert images[0, :, 2:].abs().max() == images[0, :, :, 2:].abs().max() == 0
    assert images[0, :, 0, 1].tolist() == pytest.approx((COLORS[1] / 255 * 2 - 1).tolist(), abs=1e-6)


def test_colours_vary_as_said():
    image = np.full((1, 2, 3), 128, np.uint8)
    grays = np.array([photometric_distortion(image, np.random.default_rng(s))[0, 0] for s in range(2000)]).astype(int)
    assert np.ptp(grays, axis=-1).max() == 0  # hue and saturation leave grey alone
    # A quarter keeps both brightness and contrast; the extremes are (128 - 32) / 2 and (128 + 32) * 1.5.
    assert (grays[:, 0] == 128).mean() == pytest.approx(0.25, abs=0.04)
    assert 48 <= grays.min() < 60 and 225 < grays.max() <= 240
    color = np.full((1, 1, 3), (200, 60, 60), np.uint8)
    colors = np.array([photometric_distortion(color, np.random.default_rng(s))[0, 0] for s in range(500)]).astype(int)
    assert (colors[:, 1] > colors[:, 2] + 5).any() and (colors[:, 2] > colors[:, 1] + 5).any()  # hue, both ways
    assert (colors[:, 0] >= colors[:, 1:].max(axis=1) - 1).all()  # but never far
    assert image.tolist() == np.full((1, 2, 3), 128).tolist()  # the original is left alone


class Drawing(np.random.Generator):
    """Every draw of a range is `value`."""

    def __init__(self, value: float):
        super().__init__(np.random.PCG64())
        self.value = value

    def uniform(self, low, high):
        assert low <= self.value <= high
        return self.value


@pytest.mark.parametrize("turn", [-0.5, -0.2, 0.1, 0.5])
def test_dinov3_turns_hue_by_up_to_half_a_circle(turn):
    colors = np.random.default_rng(0).integers(0, 256, (1, 50, 3), np.uint8)
    turned = turn_hue_fully(colors, Drawing(turn))
    for before, after in zip(colors[0] / 255, turned[0] / 255, strict=True):
        hue, saturation, value = colorsys.rgb_to_hsv(*before)
        assert np.abs(np.array(colorsys.hsv_to_rgb((hue + turn) % 1, saturation, value)) - after).max() < 2 / 255


def test_dinov3_blends_with_gray():
    colors = np.random.default_rng(0).integers(0, 256, (1, 50, 3), np.uint8)
    for factor in (0.5, 1.5):
        gray = (colors @ np.array([0.299, 0.587, 0.114]))[..., None]
        expected = (gray + factor * (colors - gray)).clip(0, 255)
        assert np.abs(expected - blend_with_gray(colors, Drawing(factor))).max() < 2
    color = np.array([[[200, 60, 60]]], np.uint8)
    # In HSV half the saturation keeps the brightest channel; the blend does not.
    assert scale_saturation(color, Drawing(0.5)).tolist() == [[[200, 130, 130]]]
    assert blend_with_gray(color, Drawing(0.5)).tolist() == [[[150, 80, 80]]]


def test_the_style_decides_how_far_colours_go():
    color = np.full((1, 1, 3), (200, 60, 60), np.uint8)
    far = {}
    for style in ("dinov3", "mmseg"):
        drawn = [photometric_distortion(color, np.random.default_rng(s), style=style)[0, 0] for s in range(300)]
        far[style] = np.mean([drawn_color.argmax() != 0 for drawn_color in drawn])
    # A half of the images, and of these the two thirds that are turned by more than a sixth of the circle.
    assert far["mmseg"] < 0.01 and far["dinov3"] == pytest.approx(1 / 3, abs=0.07)
    assert (
        photometric_distortion(np.full((1, 2, 3), 9, np.uint8), np.random.default_rng(0), style="dinov3")
    ).std() == 0
