"""Colors augmented in batches are those of the workers, crop by crop, within rounding, from the same random numbers."""

import numpy as np
import pytest
import torch

from selfpatch.config import IMAGENET_MEAN, IMAGENET_STD, CropsConfig
from selfpatch.data.augmentation import device_augmentation
from selfpatch.data.augmentation.color_augmentation import apply_color
from selfpatch.data.augmentation.device_augmentation import apply_color_batch
from selfpatch.data.augmentation.geometry import CropBox
from selfpatch.data.augmentation.multi_crop import MultiCrop
from selfpatch.data.augmentation.normalize import normalize
from selfpatch.data.augmentation.params import (
    BatchedColorParams,
    ColorParams,
    CropParams,
    JitterParams,
    sample_color_params,
)
from selfpatch.data.loading.device_prefetch import prefetch_to_device
from selfpatch.data.loading.sampler import sample_rng
from tests.data.augmentation.photographs import UNCHANGED, photograph
from tests.data.loading.test_loader import SMALL, batches, folder  # noqa: F401

CROPS = [photograph(seed, 96, 80) for seed in range(4)]
DIFFERENT = np.linspace(0.6, 1.4, 12).tolist()
COLORS = {
    "brightness": [UNCHANGED._replace(jitter=JitterParams(f, 1.0, 1.0, 0.0, (0, 1, 2, 3))) for f in DIFFERENT],
    "contrast": [UNCHANGED._replace(jitter=JitterParams(1.0, f, 1.0, 0.0, (1, 0, 2, 3))) for f in DIFFERENT],
    "saturation": [UNCHANGED._replace(jitter=JitterParams(1.0, 1.0, f, 0.0, (3, 2, 1, 0))) for f in DIFFERENT],
    "hue": [UNCHANGED._replace(jitter=JitterParams(1.0, 1.0, 1.0, f - 1, (0, 1, 2, 3))) for f in DIFFERENT],
    "gray": [UNCHANGED._replace(grayscale=True)],
    "blur": [UNCHANGED._replace(blur_sigma=r) for r in np.linspace(0.1, 2.0, 12).tolist()],
    "solarize": [UNCHANGED._replace(solarize=True)],
    "nothing": [UNCHANGED],
    "as drawn": [sample_color_params(np.random.default_rng(i), CropsConfig(), i % 3) for i in range(48)],
}


def batched(params: list[ColorParams], flip: bool = False) -> BatchedColorParams:
    return BatchedColorParams.stack([CropParams(CropBox(0, 0, 1, 1), flip, color) for color in params])


def both(params: list[ColorParams]) -> tuple[np.ndarray, np.ndarray]:
    crops = np.stack([CROPS[i % 4] for i in range(len(params))])
    batch = torch.from_numpy(crops).permute(0, 3, 1, 2).contiguous()
    before = batch.clone()
    ours = apply_color_batch(batch, batched(params))
    assert torch.equal(batch, before)
    expected = np.stack([apply_color(crop, color) for crop, color in zip(crops, params, strict=True)])
    return ours.permute(0, 2, 3, 1).numpy().astype(int), expected.astype(int)


@pytest.mark.parametrize("name", COLORS)
def test_equal_parameters_give_equal_pixels(name):
    """Far below one level in 255 on average, crop by crop."""
    ours, expected = both(COLORS[name])
    assert np.abs(ours - expected).mean(axis=(1, 2, 3)).max() < 0.05


def test_flip():
    """Before everything else, as in the workers; and only the crops that are to be flipped."""
    crops = torch.from_numpy(np.stack(CROPS[:2])).permute(0, 3, 1, 2)
    color = UNCHANGED._replace(solarize=True)
    params = BatchedColorParams.stack([CropParams(CropBox(0, 0, 1, 1), flip, color) for flip in (False, True)])
    ours = apply_color_batch(crops, params).permute(0, 2, 3, 1).numpy()
    np.testing.assert_array_equal(ours[0], apply_color(CROPS[0], color))
    np.testing.assert_array_equal(ours[1], apply_color(CROPS[1][:, ::-1].copy(), color))


def test_all_colors_and_grays():
    """Hue and saturation at their edges: pure, grey and black pixels."""
    levels = np.array([0, 1, 64, 127, 128, 200, 254, 255], np.uint8)
    colors = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(16, 32, 3)
    params = [
        UNCHANGED._replace(jitter=JitterParams(1.0, 1.0, s, h, (3, 2, 0, 1)))
        for s in (0.6, 1.4)
        for h in (-0.5, 0.0, 0.3)
    ]
    batch = torch.from_numpy(colors).permute(2, 0, 1).expand(len(params), 3, 16, 32)
    expected = np.stack([apply_color(colors, color) for color in params]).astype(int)
    difference = np.abs(apply_color_batch(batch, batched(params)).permute(0, 2, 3, 1).numpy() - expected)
    assert difference.max() <= 10
    assert difference.mean() < 0.05


def test_chunks_do_not_change_a_bit(monkeypatch):
    whole, _ = both(COLORS["as drawn"])
    monkeypatch.setattr(device_augmentation, "CHUNK_SIZE", 5 * CROPS[0].size)
    np.testing.assert_array_equal(both(COLORS["as drawn"])[0], whole)


def test_crops_are_those_of_the_workers(folder):  # noqa: F811
    """Of a whole run's batches, unreadable images included: the same draws, whoever applies them."""
    in_workers = batches(folder, stop_step=3)
    on_device = batches(folder, stop_step=3, multi_crop=MultiCrop(SMALL, color_in_worker=False), num_workers=1)
    for there, here in zip(in_workers, on_device, strict=True):
        assert there.bad_images == here.bad_images
        assert there.crops.global_color is None
        for name in ("global", "local"):
            expected = getattr(there.crops, f"{name}_crops").float()
            ours = apply_color_batch(getattr(here.crops, f"{name}_crops"), getattr(here.crops, f"{name}_color")).float()
            assert (ours - expected).abs().mean() < 0.1
            assert (getattr(here.crops, f"{name}_crops").float() - expected).abs().mean() > 10


def test_without_local_crops():
    multi_crop = MultiCrop(CropsConfig(global_size=32, num_local=0, blur_sigma=(0.1, 0.2)), color_in_worker=False)
    crops = multi_crop(CROPS[0], sample_rng(0, 0, 0))
    assert crops.local_color is None
    assert crops.global_color.flip.shape == (2, 1)


def test_copying_ahead_changes_nothing(folder):  # noqa: F811
    copied = list(prefetch_to_device(iter(batches(folder, stop_step=3)), torch.device("cpu")))
    assert [batch.step for batch in copied] == [0, 1, 2]


@pytest.mark.gpu
def test_on_a_gpu(folder):  # noqa: F811
    device = torch.device("cuda")
    in_memory = batches(folder, multi_crop=MultiCrop(SMALL, color_in_worker=False), pin_memory=True)
    for batch, copied in zip(in_memory, prefetch_to_device(iter(in_memory), device), strict=True):
        assert torch.equal(copied.crops.global_crops.cpu(), batch.crops.global_crops)
        on_gpu = apply_color_batch(copied.crops.local_crops, batch.crops.local_color).cpu().float()
        assert (
            on_gpu - apply_color_batch(batch.crops.local_crops, batch.crops.local_color).float()
        ).abs().mean() < 0.05


@pytest.mark.gpu
def test_the_host_never_waits_for_the_gpu():
    device = torch.device("cuda")
    crops = torch.from_numpy(np.stack([CROPS[i % 4] for i in range(48)])).permute(0, 3, 1, 2).to(device)
    params = batched(COLORS["as drawn"])
    normalize(apply_color_batch(crops, params), IMAGENET_MEAN, IMAGENET_STD)  # makes constants
    torch.cuda.set_sync_debug_mode("error")
    try:
        normalize(apply_color_batch(crops, params), IMAGENET_MEAN, IMAGENET_STD)
    finally:
        torch.cuda.set_sync_debug_mode("default")
