"""Random parameters are distributed as configured and as torchvision's; a batch holds those of every crop."""

import dataclasses
import math

import numpy as np
import torch
from scipy.stats import ks_2samp
from torchvision.transforms import ColorJitter

from selfpatch.config import CropsConfig
from selfpatch.data.augmentation.geometry import CropBox
from selfpatch.data.augmentation.params import (
    BatchedColorParams,
    ColorParams,
    CropParams,
    JitterParams,
    sample_color_params,
)
from tests.reference.plain_augmentation import JITTER


def test_colors_are_distributed_as_configured():
    rng, config, n = np.random.default_rng(0), CropsConfig(), 4000
    for kind, blur, solarize in ((0, 1.0, 0.0), (1, 0.1, 0.2), (2, 0.5, 0.0)):
        colors = [sample_color_params(rng, config, kind) for _ in range(n)]
        for share, wanted in (
            (np.mean([color.jitter is not None for color in colors]), 0.8),
            (np.mean([color.grayscale for color in colors]), 0.2),
            (np.mean([color.blur_sigma is not None for color in colors]), blur),
            (np.mean([color.solarize for color in colors]), solarize),
        ):
            assert abs(share - wanted) <= 4 * math.sqrt(wanted * (1 - wanted) / n)
        sigmas = [color.blur_sigma for color in colors if color.blur_sigma is not None]
        assert ks_2samp(sigmas, np.random.default_rng(1).uniform(0.1, 2.0, n)).pvalue > 1e-4


def test_jitter_is_distributed_as_torchvisions():
    torch.manual_seed(0)
    rng, config, n = np.random.default_rng(0), dataclasses.replace(CropsConfig(), color_jitter_prob=1.0), 4000
    ours = [sample_color_params(rng, config, 2).jitter for _ in range(n)]
    plain = ColorJitter(*JITTER)
    drawn = [plain.get_params(plain.brightness, plain.contrast, plain.saturation, plain.hue) for _ in range(n)]
    for i in range(4):
        assert ks_2samp([jitter[i] for jitter in ours], [params[i + 1] for params in drawn]).pvalue > 1e-4
    orders, counts = np.unique([jitter.order for jitter in ours], axis=0, return_counts=True)
    assert len(orders) == 24
    assert ((counts - n / 24) ** 2 / (n / 24)).sum() < 50  # chi-square, 23 degrees of freedom, p = 0.001


def test_a_batch_names_the_parameters_of_every_crop():
    jitter = JitterParams(0.5, 1.25, 1.5, -0.1, (3, 0, 2, 1))
    crops = [
        CropParams(CropBox(0, 0, 1, 1), True, ColorParams(jitter, True, None, False)),
        CropParams(CropBox(0, 0, 1, 1), False, ColorParams(None, False, 1.75, True)),
    ]
    batch = BatchedColorParams.stack(crops)
    assert batch.flip.tolist() == [True, False]
    assert batch.jitter.tolist() == [[0.5, 1.25, 1.5, -25], [0, 0, 0, 0]]  # int(-0.1 * 255) levels of hue
    assert batch.jitter_order.tolist() == [[3, 0, 2, 1], [-1, -1, -1, -1]]
    assert batch.grayscale.tolist() == [True, False]
    assert batch.blur_sigma.tolist() == [0, 1.75]
    assert batch.solarize.tolist() == [False, True]
    last = BatchedColorParams.allocate(3, 2)
    last.map(lambda part: part[2]).write(crops)
    assert all(torch.equal(ours[2], expected) for ours, expected in zip(last, batch, strict=True))
