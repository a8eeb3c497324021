"""Boxes are distributed as torchvision's; resized crops have nearly its pixels."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import ks_2samp
from torchvision.transforms import RandomResizedCrop

from selfpatch.data.augmentation.geometry import resized_crop, sample_crop_box
from selfpatch.data.augmentation.params import CropParams
from tests.data.augmentation.photographs import PHOTOGRAPHS, UNCHANGED, difference
from tests.reference.plain_augmentation import plain_crop


@pytest.mark.parametrize("size", [(224, 224), (96, 96), (64, 160), (500, 375)])
def test_resized_crop(size):
    rng = np.random.default_rng(0)
    for i in range(20):
        box = sample_crop_box(rng, 375, 500, (0.05, 1.0), size[1] / size[0])
        crop = CropParams(box, bool(i % 2), UNCHANGED)
        assert (
            difference(resized_crop(PHOTOGRAPHS[i % 4], *crop[:2], size), plain_crop(PHOTOGRAPHS[i % 4], crop, size))
            < 0.5
        )


@pytest.mark.parametrize("shape", [(375, 500), (500, 375), (300, 300), (100, 400), (60, 700)])
@pytest.mark.parametrize("scale", [(0.25, 1.0), (0.05, 0.25)])
def test_boxes(shape, scale):
    torch.manual_seed(0)
    rng, blank = np.random.default_rng(0), torch.empty(3, *shape)
    ours = np.array([sample_crop_box(rng, *shape, scale, 1.0) for _ in range(3000)])
    plain = np.array([RandomResizedCrop.get_params(blank, list(scale), [3 / 4, 4 / 3]) for _ in range(3000)])
    for quantity in (
        lambda box: box[:, 2] * box[:, 3],
        lambda box: box[:, 3] / box[:, 2],
        lambda box: box[:, 0],
        lambda box: box[:, 1],
        lambda box: 2 * box[:, 0] + box[:, 2],
    ):
        assert ks_2samp(quantity(ours), quantity(plain)).pvalue > 1e-4


@settings(max_examples=300)
@given(
    rows=st.integers(1, 2000), columns=st.integers(1, 2000), low=st.floats(0.01, 1), high=st.floats(0.01, 1),
    ratio=st.floats(0.2, 5), seed=st.integers(0, 9),
)  # fmt: skip
def test_boxes_lie_inside(rows, columns, low, high, ratio, seed):
    box = sample_crop_box(np.random.default_rng(seed), rows, columns, (min(low, high), max(low, high)), ratio)
    assert 0 <= box.top < box.top + box.height <= rows
    assert 0 <= box.left < box.left + box.width <= columns


def test_boxes_follow_the_shape_of_the_crop():
    rng = np.random.default_rng(0)
    boxes = np.array([sample_crop_box(rng, 400, 400, (0.05, 0.3), 2.0) for _ in range(2000)])
    stretch = boxes[:, 3] / boxes[:, 2] / 2.0
    assert math.exp(np.log(stretch).mean()) == pytest.approx(1, abs=0.02)
    assert stretch.min() > 0.73
    assert stretch.max() < 1.36
