"""The fast augmentation against the plain one: nearly equal pixels, and random choices that are distributed alike."""

import dataclasses
import math

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFilter
from scipy.stats import ks_2samp
from torchvision.transforms import ColorJitter, RandomResizedCrop

from selfpatch.config import IMAGENET_MEAN, IMAGENET_STD, CropsConfig
from selfpatch.data.augmentation.multi_crop import (
    Box,
    ColorParams,
    CropParameters,
    Jitter,
    MultiCrop,
    apply,
    apply_color,
    blur_kernel,
    blur_kernels,
    jitter_colors,
    normalize,
    sample_color_params,
    sample_crop_box,
)
from tests.reference.plain_augmentation import JITTER, PlainMultiCrop, plain_crop

PLAIN = ColorParams(jitter=None, gray=False, blur_sigma=None, solarize=False)


def photograph(seed: int, rows: int = 375, columns: int = 500) -> np.ndarray:
    """Made up: colour at every scale, and some grain."""
    rng = np.random.default_rng(seed)
    layers = [
        weight * cv2.resize(rng.random((size, size, 3)), (columns, rows), interpolation=cv2.INTER_CUBIC)
        for size, weight in ((4, 1.0), (12, 0.6), (40, 0.3), (120, 0.12))
    ]
    smooth = np.sum(layers, axis=0)
    smooth = 255 * (smooth - smooth.min()) / np.ptp(smooth)
    return np.clip(smooth + rng.normal(0, 5, smooth.shape), 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def photographs() -> list[np.ndarray]:
    return [photograph(seed) for seed in range(4)]


def difference(a: np.ndarray, b: np.ndarray) -> float:
    assert a.shape == b.shape
    assert a.dtype == b.dtype == np.uint8
    return float(np.abs(a.astype(int) - b.astype(int)).mean())


# 1. Equal parameters, nearly equal pixels


@pytest.mark.parametrize("size", [(224, 224), (96, 96), (64, 160), (500, 375)])
def test_geometry(photographs, size):
    rng = np.random.default_rng(0)
    for i in range(20):
        box = sample_crop_box(rng, 375, 500, (0.05, 1.0), size[1] / size[0])
        crop = CropParameters(box, bool(i % 2), PLAIN)
        assert difference(apply(photographs[i % 4], crop, size), plain_crop(photographs[i % 4], crop, size)) < 0.5


@pytest.mark.parametrize(("change", "most"), [(0, 0.01), (1, 0.01), (2, 0.05), (3, 1.0)])
def test_each_jitter(photographs, change, most):
    rng = np.random.default_rng(change)
    for i in range(20):
        factor, hue = rng.uniform(0.6, 1.4), rng.uniform(-0.1, 0.1)
        jitter = Jitter(factor, factor, factor, hue, (change,))
        crop = CropParameters(Box(0, 0, 375, 500), False, PLAIN._replace(jitter=jitter))
        image = photographs[i % 4]
        assert difference(jitter_colors(image, jitter), plain_crop(image, crop, (375, 500))) < most


def test_blur(photographs):
    for radius in np.linspace(0.1, 2.0, 20).tolist():
        crop = CropParameters(Box(0, 0, 375, 500), False, PLAIN._replace(blur_sigma=radius))
        assert difference(apply_color(photographs[0], crop.light), plain_crop(photographs[0], crop, (375, 500))) < 0.8


def test_blur_of_a_checkerboard():
    board = (np.indices((32, 32)).sum(axis=0) // 3 % 2 * 255).astype(np.uint8)[..., None].repeat(3, axis=2)
    for radius in (0.3, 0.7, 1.1, 1.9):
        blurred = np.asarray(Image.fromarray(board).filter(ImageFilter.GaussianBlur(radius)))
        ours = apply_color(board, PLAIN._replace(blur_sigma=radius))
        # Pillow continues the border anew before each of its three boxes, so the outermost pixels differ.
        assert np.abs(ours.astype(int) - blurred)[6:-6, 6:-6].max() <= 3
        assert difference(ours, blurred) < 2


@given(st.floats(0.01, 20))
def test_blur_kernel_has_the_right_variance(radius):
    kernel = blur_kernel(radius).astype(float)
    offsets = np.arange(len(kernel)) - len(kernel) // 2
    assert (kernel >= 0).all()
    assert kernel.sum() == pytest.approx(1, abs=1e-6)
    np.testing.assert_allclose(kernel, kernel[::-1])
    assert (kernel * offsets**2).sum() == pytest.approx(radius**2, rel=1e-3)


def test_blur_kernels_of_many():
    radii = np.array([0.0, 0.1, 0.9, 1.0, 2.0, 1.3, 5.0])
    many = blur_kernels(radii)
    for radius, row in zip(radii, many, strict=True):
        one = blur_kernel(radius)
        ends = (many.shape[1] - len(one)) // 2
        np.testing.assert_allclose(row, np.pad(one, ends), atol=1e-7)


def test_grey_and_solarize(photographs):
    for light in (PLAIN._replace(gray=True), PLAIN._replace(solarize=True)):
        crop = CropParameters(Box(0, 0, 375, 500), False, light)
        assert difference(apply_color(photographs[0], light), plain_crop(photographs[0], crop, (375, 500))) < 0.01
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16)[..., None].repeat(3, axis=2)
    solarized = apply_color(levels, PLAIN._replace(solarize=True))[..., 0].ravel()
    np.testing.assert_array_equal(solarized, [*range(128), *range(127, -1, -1)])


def test_whole_pipeline_with_equal_parameters(photographs):
    """Mean over images below 1/255, and no single crop far off."""
    rng, multi_crop = np.random.default_rng(1), MultiCrop(CropsConfig())
    differences = []
    for i in range(12):
        global_parameters, local_parameters = multi_crop.draw(rng, 375, 500)
        for crops, size in ((global_parameters, (224, 224)), (local_parameters, (96, 96))):
            for crop in crops:
                ours, plain = apply(photographs[i % 4], crop, size), plain_crop(photographs[i % 4], crop, size)
                differences.append(difference(ours, plain))
    assert np.mean(differences) < 1
    assert np.max(differences) < 3


# 2. Parameters are distributed as torchvision's


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


def test_light_is_distributed_as_configured():
    rng, config, n = np.random.default_rng(0), CropsConfig(), 4000
    for kind, blur, solarize in ((0, 1.0, 0.0), (1, 0.1, 0.2), (2, 0.5, 0.0)):
        lights = [sample_color_params(rng, config, kind) for _ in range(n)]
        for share, wanted in (
            (np.mean([light.jitter is not None for light in lights]), 0.8),
            (np.mean([light.gray for light in lights]), 0.2),
            (np.mean([light.blur_sigma is not None for light in lights]), blur),
            (np.mean([light.solarize for light in lights]), solarize),
        ):
            assert abs(share - wanted) <= 4 * math.sqrt(wanted * (1 - wanted) / n)
        radii = [light.blur_sigma for light in lights if light.blur_sigma is not None]
        assert ks_2samp(radii, np.random.default_rng(1).uniform(0.1, 2.0, n)).pvalue > 1e-4


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


def test_pixels_are_distributed_as_the_plain_pipelines(photographs):
    """Mean and spread of the normalised crops of one image over many draws: the part that parameters do not show."""
    torch.manual_seed(0)
    np.random.seed(0)
    image, plain, multi_crop = photographs[1], PlainMultiCrop(), MultiCrop(CropsConfig())
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


# 3. The whole


def test_shapes_and_types(photographs):
    crops = MultiCrop(CropsConfig())(photographs[0], np.random.default_rng(0))
    assert crops.global_crops.shape == (2, 1, 3, 224, 224)
    assert crops.local_crops.shape == (8, 1, 3, 96, 96)
    assert crops.global_crops.dtype == torch.uint8
    assert crops.global_crops.permute(0, 1, 3, 4, 2).is_contiguous()


def test_other_numbers_and_shapes_of_crops(photographs):
    config = CropsConfig(global_size=(64, 128), num_global=3, local_size=(32, 48), num_local=1)
    crops = MultiCrop(config)(photographs[0], np.random.default_rng(0))
    assert crops.global_crops.shape == (3, 1, 3, 64, 128)
    assert crops.local_crops.shape == (1, 1, 3, 32, 48)
    assert MultiCrop(CropsConfig(num_local=0))(photographs[0], np.random.default_rng(0)).local_crops is None


def test_a_pure_function_of_image_and_generator(photographs):
    multi_crop = MultiCrop(CropsConfig())
    before = photographs[0].copy()
    first, second, other = (multi_crop(photographs[0], np.random.default_rng(seed)) for seed in (0, 0, 1))
    assert torch.equal(first.global_crops, second.global_crops)
    assert torch.equal(first.local_crops, second.local_crops)
    assert not torch.equal(first.global_crops, other.global_crops)
    np.testing.assert_array_equal(photographs[0], before)


def test_threads_do_not_change_a_bit(photographs):
    multi_crop, num_threads = MultiCrop(CropsConfig()), torch.get_num_threads()
    crops = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        cv2.setNumThreads(threads)
        crops.append(multi_crop(photographs[0], np.random.default_rng(0)))
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


@pytest.mark.parametrize("shape", [(3, 4, 5), (2, 3, 4, 5), (2, 6, 3, 4, 5)])
def test_normalize(shape):
    crops = torch.randint(0, 256, shape, dtype=torch.uint8)
    before = crops.clone()
    mean, std = torch.tensor(IMAGENET_MEAN).view(3, 1, 1), torch.tensor(IMAGENET_STD).view(3, 1, 1)
    normalized = normalize(crops, IMAGENET_MEAN, IMAGENET_STD)
    torch.testing.assert_close(normalized, (crops / 255 - mean) / std, rtol=1e-5, atol=1e-5)
    assert torch.equal(crops, before)
    channels_last = crops.movedim(-3, -1).contiguous().movedim(-1, -3)
    assert torch.equal(normalize(channels_last, IMAGENET_MEAN, IMAGENET_STD), normalized)
    assert normalize(channels_last, IMAGENET_MEAN, IMAGENET_STD).is_contiguous()
