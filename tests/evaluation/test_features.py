import numpy as np
import pytest
import torch
from torch import nn

from selfpatch.backbones.backbone import Stage
from selfpatch.errors import UserError
from selfpatch.evaluation import features
from selfpatch.evaluation.features import (
    ReadCache,
    RowBuffer,
    batches,
    eval_mode,
    floor_to_patch_multiple,
    input_size,
    is_hierarchical,
    keep_ratio_size,
    normalized,
    patch_features,
    prefetch,
    resize_image,
    resize_mask,
    scale_out_indices,
)
from tests.backbones.small_swin import small_pyramid, small_swin
from tests.evaluation.labeled_scenes import ColorBackbone


def test_sizes_are_whole_patches():
    assert floor_to_patch_multiple(512, (16, 16)) == (512, 512)
    assert floor_to_patch_multiple(512, (14, 14)) == (504, 504)
    assert floor_to_patch_multiple(100, (16, 8)) == (96, 96)
    assert input_size((333, 500), 224, (16, 16), resize="square") == (224, 224)
    assert input_size((300, 450), 224, (16, 16), resize="keep_aspect") == (224, 336)
    assert input_size((450, 300), 224, (14, 14), resize="keep_aspect") == (336, 224)
    assert input_size((300, 300), 518, (14, 14), resize="keep_aspect") == (518, 518)
    assert input_size((300, 10_000), 30, (14, 14), resize="keep_aspect") == (28, 994)


def test_refuses_images_smaller_than_a_patch():
    with pytest.raises(ValueError, match="image-size is 12 px, less than one patch of 16 x 16; make it larger"):
        floor_to_patch_multiple(12, (16, 16))


def test_resizing_keeps_means_of_images_and_values_of_masks():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (40, 60, 3), np.uint8)
    assert np.allclose(resize_image(image, (10, 20)).mean(axis=(0, 1)), image.mean(axis=(0, 1)), atol=2)
    mask = rng.integers(0, 3, (20, 30), np.uint8) * 100
    assert resize_mask(mask, (40, 60)).tolist() == mask.repeat(2, axis=0).repeat(2, axis=1).tolist()


def test_normalized_and_row_major_maps():
    pixels = torch.zeros(1, 16, 24, 3, dtype=torch.uint8)
    pixels[0, 8:, :8] = torch.tensor([255, 0, 51])  # the patch in row 1, column 0
    backbone = ColorBackbone((8, 8))
    images = normalized(pixels, (0.5, 0.5, 0.2), (0.5, 0.25, 1.0))
    with eval_mode(backbone):
        feature_map = patch_features(backbone, images)
    assert feature_map.shape == (1, 3, 2, 3)
    assert feature_map[0, :, 1, 0].tolist() == pytest.approx([1, -2, 0], abs=1e-6)
    assert feature_map[0, :, 0, 0].tolist() == pytest.approx([-1, -2, -0.2], abs=1e-6)


def test_evaluating_puts_every_module_back():
    backbone = ColorBackbone()
    images = torch.rand(1, 3, 8, 8)
    with eval_mode(backbone):
        assert not backbone.dropout.training
        assert torch.equal(patch_features(backbone, images), patch_features(backbone, images))
    assert backbone.training and backbone.dropout.training and not backbone.frozen.training
    with pytest.raises(RuntimeError), eval_mode(backbone):
        raise RuntimeError
    assert backbone.training and not backbone.frozen.training


class ConvBackbone(ColorBackbone):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, images):
        return super().forward(self.conv(images))


def test_features_are_float32_under_autocast_and_carry_no_gradient():
    backbone = ConvBackbone().eval()
    images = torch.rand(1, 3, 8, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        feature_map = patch_features(backbone, images)
    assert torch.equal(feature_map, patch_features(backbone, images))
    assert feature_map.dtype == torch.float32 and not feature_map.requires_grad and not feature_map.is_inference()


def test_cache_keeps_what_fits(monkeypatch):
    monkeypatch.setattr(features, "CACHE_BYTES", 250)
    reads = []

    def read(item):
        reads.append(item)
        return (np.full(100, item, np.uint8),)

    cached = ReadCache(read)
    for _ in range(2):
        assert [int(cached(item)[0][0]) for item in (1, 2, 3)] == [1, 2, 3]
    assert reads == [1, 2, 3, 3]


def test_read_ahead_keeps_order_and_passes_errors_on():
    assert list(prefetch(lambda item: item**2, iter([[1, 2], [3], [4, 5]]))) == [[1, 4], [9], [16, 25]]
    assert list(prefetch(lambda item: item, iter([]))) == []
    with pytest.raises(ZeroDivisionError):
        list(prefetch(lambda item: 1 / item, iter([[1], [0]])))


def test_a_row_buffer_is_the_parts_one_after_another_and_must_be_full():
    parts = torch.randn(7, 3, generator=torch.Generator().manual_seed(0)).split([2, 0, 4, 1])
    buffer = RowBuffer(7)
    for part in parts[:-1]:
        buffer.add(part)
    assert len(buffer) == 6
    with pytest.raises(AssertionError):
        _ = buffer.rows
    buffer.add(parts[-1])
    assert torch.equal(buffer.rows, torch.cat(parts))
    with pytest.raises(RuntimeError, match="expanded size"):
        buffer.add(parts[0])


class Deep(ColorBackbone):
    def __init__(self, depth: int):
        super().__init__((16, 16))
        self.stages = [Stage(12, (16, 16))] * depth


@pytest.mark.parametrize(
    ("depth", "out_indices", "expected"),
    [
        (12, (3, 5, 7, 11), [3, 5, 7, 11]),
        (24, (3, 5, 7, 11), [7, 11, 15, 23]),
        (24, (2, 5, 8, 11), [5, 11, 17, 23]),
        (4, (2, 5, 8, 11), [0, 1, 2, 3]),
        (4, (3, 5, 7, 11), [1, 1, 2, 3]),
        (2, (2, 5, 8, 11), [0, 0, 1, 1]),
        (1, (3, 5, 7, 11), [0, 0, 0, 0]),
    ],
)
def test_out_indices_keep_their_fraction_of_the_depth(depth, out_indices, expected):
    assert scale_out_indices(Deep(depth), out_indices) == expected
    assert not is_hierarchical(Deep(depth))


def test_all_four_stages_of_a_hierarchy_are_read():
    assert is_hierarchical(small_pyramid())
    assert scale_out_indices(small_pyramid(), (3, 5, 7, 11)) == [0, 1, 2, 3]
    with pytest.raises(UserError, match="takes 4 maps, and this backbone has 2 stages; choose another one"):
        scale_out_indices(small_swin(), (3, 5, 7, 11))


def test_batches_are_slices():
    assert list(batches([1, 2, 3, 4, 5], 2)) == [[1, 2], [3, 4], [5]]
    assert list(batches(range(5), 3)) == [range(3), range(3, 5)]
    assert list(batches([], 3)) == []


def test_sizes_are_mmcvs():
    assert keep_ratio_size((683, 512), 256) == (342, 256)
    assert keep_ratio_size((333, 500), 512) == (512, 769)
    assert keep_ratio_size((10, 10), 7) == (7, 7)
    # mmcv.rescale_size of (2048, 512): the smaller of the two factors, both sides rounded half up.
    rng = np.random.default_rng(0)
    for _ in range(200):
        height, width = (int(side) for side in rng.integers(20, 3000, 2))
        factor = min(2048 / max(height, width), 512 / min(height, width))
        assert keep_ratio_size((height, width), 512, 2048) == (int(height * factor + 0.5), int(width * factor + 0.5))
    assert keep_ratio_size((100, 1000), 512, 2048) == (205, 2048)
    assert keep_ratio_size((1, 10_000), 512, 2048) == (1, 2048)
