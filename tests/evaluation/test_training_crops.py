import numpy as np
import pytest

from selfpatch.evaluation.metrics import IGNORED
from selfpatch.evaluation.protocols.linear_segmentation import LinearSegmentation
from selfpatch.evaluation.training_crops import distort_colors, random_crop, short_side_size
from tests.evaluation.labelled_scenes import COLORS, random_mask


def protocol(**settings) -> LinearSegmentation:
    return LinearSegmentation(image_size=32, stride=32, scale=(0.5, 2.0), **settings)


def test_short_side():
    assert short_side_size((683, 512), 256) == (342, 256)
    assert short_side_size((333, 500), 512) == (512, 769)
    assert short_side_size((10, 10), 7) == (7, 7)


def test_image_and_mask_stay_together():
    rng = np.random.default_rng(0)
    mask = random_mask(rng, (64, 96), 4, (32, 32))
    sizes = set()
    for seed in range(50):
        image, crop = random_crop(
            COLORS[mask], mask, np.random.default_rng(seed), protocol(max_class_share=1.0), size=(32, 24)
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
    settings = LinearSegmentation(image_size=32, stride=32, scale=(1.0, 1.0), max_class_share=1.0)
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
        chosen = LinearSegmentation(max_class_share=share, **settings)
        crops = [random_crop(image, mask, np.random.default_rng(s), chosen, size=(16, 16))[1] for s in range(200)]
        mixed[share] = np.mean([(crop == 1).mean() > 0.25 for crop in crops])
    assert mixed[0.75] > 3 * mixed[1.0] > 0


def test_colours_vary_as_said():
    image = np.full((1, 2, 3), 128, np.uint8)
    greys = np.array([distort_colors(image, np.random.default_rng(s))[0, 0] for s in range(2000)]).astype(int)
    assert np.ptp(greys, axis=-1).max() == 0  # hue and saturation leave grey alone
    # A quarter keeps both brightness and contrast; the extremes are (128 - 32) / 2 and (128 + 32) * 1.5.
    assert (greys[:, 0] == 128).mean() == pytest.approx(0.25, abs=0.04)
    assert 48 <= greys.min() < 60 and 225 < greys.max() <= 240
    colour = np.full((1, 1, 3), (200, 60, 60), np.uint8)
    colours = np.array([distort_colors(colour, np.random.default_rng(s))[0, 0] for s in range(500)]).astype(int)
    assert (colours[:, 1] > colours[:, 2] + 5).any() and (colours[:, 2] > colours[:, 1] + 5).any()  # hue, both ways
    assert (colours[:, 0] >= colours[:, 1:].max(axis=1) - 1).all()  # but never far
    assert image.tolist() == np.full((1, 2, 3), 128).tolist()  # the original is left alone
