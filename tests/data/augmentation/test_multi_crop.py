"""The fast augmentation against the plain one: nearly equal pixels, equally distributed."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from selfpatch.config import IMAGENET_MEAN, IMAGENET_STD, CropsConfig
from selfpatch.data.augmentation.device_augmentation import apply_color_batch
from selfpatch.data.augmentation.multi_crop import MultiCrop, apply_crop
from selfpatch.data.augmentation.normalize import normalize
from tests.data.augmentation.photographs import PHOTOGRAPHS, difference, photograph
from tests.reference.plain_augmentation import PlainMultiCrop, plain_crop

SMALL = CropsConfig(global_size=64, local_size=32, num_local=3)
COLORLESS = dict(color_jitter_prob=0.0, grayscale_prob=0.0, blur_prob=(0.0, 0.0, 0.0), solarize_prob=0.0)


def test_whole_pipeline_with_equal_parameters():
    """Mean over images below 1/255, and no single crop far off."""
    rng, multi_crop = np.random.default_rng(1), MultiCrop(CropsConfig())
    differences = []
    for i in range(12):
        global_params, local_params = multi_crop.sample_params(rng, 375, 500)
        for crops, size in ((global_params, (224, 224)), (local_params, (96, 96))):
            for crop in crops:
                ours, plain = apply_crop(PHOTOGRAPHS[i % 4], crop, size), plain_crop(PHOTOGRAPHS[i % 4], crop, size)
                differences.append(difference(ours, plain))
    assert np.mean(differences) < 1
    assert np.max(differences) < 3


def test_pixels_are_distributed_as_the_plain_pipelines():
    """Mean and spread of the normalised crops of one image over many draws: the part that parameters do not show."""
    torch.manual_seed(0)
    np.random.seed(0)
    image, plain, multi_crop = PHOTOGRAPHS[1], PlainMultiCrop(), MultiCrop(CropsConfig())
    ours, theirs = [], []
    for i in range(50):
        crops = multi_crop(image, np.random.default_rng([7, i]))
        views = [*crops.global_crops[:, 0], *crops.local_crops[:, 0]]
        ours.append([summary(normalize(view, IMAGENET_MEAN, IMAGENET_STD)) for view in views])
        theirs.append([summary(view) for view in plain(Image.fromarray(image))])
    ours, theirs = np.array(ours), np.array(theirs)  # [draws, crops, channel means and spreads]
    for part in (np.s_[:, 0], np.s_[:, 1], np.s_[:, 2:]):
        a, b = (numbers[part].reshape(-1, 6) for numbers in (ours, theirs))
        error = np.sqrt(a.var(axis=0) / len(a) + b.var(axis=0) / len(b))
        assert (np.abs(a.mean(axis=0) - b.mean(axis=0)) < 4 * error).all()


def summary(view: torch.Tensor) -> list[float]:
    return [*view.mean(dim=(1, 2)).tolist(), *view.std(dim=(1, 2)).tolist()]


def test_shapes_and_types():
    crops = MultiCrop(CropsConfig())(PHOTOGRAPHS[0], np.random.default_rng(0))
    assert crops.global_crops.shape == (2, 1, 3, 224, 224)
    assert crops.local_crops.shape == (8, 1, 3, 96, 96)
    assert crops.global_crops.dtype == torch.uint8
    assert crops.global_crops.permute(0, 1, 3, 4, 2).is_contiguous()


def test_other_numbers_and_shapes_of_crops():
    config = CropsConfig(global_size=(64, 128), num_global=3, local_size=(32, 48), num_local=1)
    crops = MultiCrop(config)(PHOTOGRAPHS[0], np.random.default_rng(0))
    assert crops.global_crops.shape == (3, 1, 3, 64, 128)
    assert crops.local_crops.shape == (1, 1, 3, 32, 48)
    assert MultiCrop(CropsConfig(num_local=0))(PHOTOGRAPHS[0], np.random.default_rng(0)).local_crops is None


def test_a_pure_function_of_image_and_generator():
    multi_crop = MultiCrop(CropsConfig())
    before = PHOTOGRAPHS[0].copy()
    first, second, other = (multi_crop(PHOTOGRAPHS[0], np.random.default_rng(seed)) for seed in (0, 0, 1))
    assert torch.equal(first.global_crops, second.global_crops)
    assert torch.equal(first.local_crops, second.local_crops)
    assert not torch.equal(first.global_crops, other.global_crops)
    np.testing.assert_array_equal(PHOTOGRAPHS[0], before)


@pytest.mark.parametrize("color_in_worker", [True, False])
def test_a_second_set_of_colors_and_boxes_leave_all_else_as_it_was(color_in_worker):
    plain, more = (
        MultiCrop(SMALL, color_in_worker=color_in_worker, **extras)(PHOTOGRAPHS[0], np.random.default_rng(0))
        for extras in ({}, dict(recolor=True, boxes=True))
    )
    assert plain.recolored_crops is plain.recolored_color is plain.global_boxes is plain.local_boxes is None
    assert len(list(plain.tensors())) == (2 if color_in_worker else 2 + 2 * 6)
    for name, part in plain._asdict().items():
        if isinstance(part, torch.Tensor):
            assert torch.equal(part, getattr(more, name)), name
        elif part is not None:
            assert all(map(torch.equal, part, getattr(more, name))), name


def test_recolored_crops_are_the_same_places_in_colors_of_their_own():
    in_worker, on_device = (
        MultiCrop(SMALL, color_in_worker=where, recolor=True)(PHOTOGRAPHS[0], np.random.default_rng(3))
        for where in (True, False)
    )
    assert on_device.recolored_crops is in_worker.recolored_color is None
    assert torch.equal(on_device.recolored_color.flip, on_device.global_color.flip)
    assert not torch.equal(on_device.recolored_color.jitter, on_device.global_color.jitter)
    made = apply_color_batch(on_device.global_crops, on_device.recolored_color)
    assert (made.float() - in_worker.recolored_crops.float()).abs().mean() < 0.3
    assert (in_worker.global_crops.float() - in_worker.recolored_crops.float()).abs().mean() > 5

    colorless = replace(SMALL, **COLORLESS)
    crops = MultiCrop(colorless, recolor=True)(PHOTOGRAPHS[0], np.random.default_rng(3))
    assert torch.equal(crops.recolored_crops, crops.global_crops)


def test_boxes_say_where_every_pixel_of_a_crop_lies():
    """An image whose colors are places: a crop's pixels name the places that its box gives them, flipped or not."""
    y, x = np.mgrid[:200, :240]
    image = np.stack([x, y, 0 * x], axis=-1).astype(np.uint8)
    multi_crop, flips = MultiCrop(replace(SMALL, **COLORLESS), boxes=True), 0
    for seed in range(20):
        crops = multi_crop(image, np.random.default_rng(seed))
        for pixels, boxes in ((crops.global_crops, crops.global_boxes), (crops.local_crops, crops.local_boxes)):
            for crop, (left, top, right, bottom) in zip(pixels[:, 0].double(), boxes[:, 0].tolist(), strict=True):
                rows, columns = crop.shape[1:]
                along_x = left + (right - left) * (torch.arange(columns) + 0.5) / columns - 0.5  # middles of pixels
                along_y = top + (bottom - top) * (torch.arange(rows) + 0.5) / rows - 0.5
                inner = np.s_[3:-3]  # at the border bicubic weights are cut
                torch.testing.assert_close(crop[0].mean(dim=0)[inner], along_x.double()[inner], rtol=0, atol=0.6)
                torch.testing.assert_close(crop[1].mean(dim=1)[inner], along_y.double()[inner], rtol=0, atol=0.6)
                flips += left > right
    assert 30 < flips < 70, "half of 100"


def test_threads_do_not_change_a_bit():
    multi_crop, num_threads = MultiCrop(CropsConfig()), torch.get_num_threads()
    crops = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        cv2.setNumThreads(threads)
        crops.append(multi_crop(PHOTOGRAPHS[0], np.random.default_rng(0)))
    torch.set_num_threads(num_threads)
    cv2.setNumThreads(-1)
    assert torch.equal(crops[0].global_crops, crops[1].global_crops)
    assert torch.equal(crops[0].local_crops, crops[1].local_crops)


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (300, 1), (7, 5), (223, 224)])
def test_small_images_are_enlarged_and_reported(shape):
    crops = MultiCrop(CropsConfig())(photograph(0, *shape), np.random.default_rng(0))
    assert MultiCrop(CropsConfig()).is_smaller_than_crop(photograph(0, *shape))
    assert crops.global_crops.shape == (2, 1, 3, 224, 224)
    assert not MultiCrop(CropsConfig()).is_smaller_than_crop(photograph(0, 224, 224))
