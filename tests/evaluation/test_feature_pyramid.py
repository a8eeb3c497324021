import pytest
import torch
from torch import nn

from selfpatch.backbones.backbone import Stage
from selfpatch.evaluation.feature_pyramid import (
    FPN,
    ResizedFeatures,
    SimplePyramid,
    build_pyramid,
    doublings,
    level_strides,
)
from selfpatch.evaluation.features import is_hierarchical
from tests.backbones.small_swin import small_pyramid
from tests.evaluation.labeled_scenes import ColorBackbone


class Staged(ColorBackbone):
    def __init__(self, depth: int, patch_size: tuple[int, int] = (16, 16), embed_dim: int = 12):
        super().__init__(patch_size)
        self.stages = [Stage(embed_dim, patch_size)] * depth

    def forward_intermediates(self, images, indices):
        raise NotImplementedError

    last_attention_keys = forward_intermediates


def test_strides_follow_the_patch_size():
    assert {size: doublings(size) for size in (8, 14, 16, 32)} == {
        8: [1, 0, -1, -2],
        14: [2, 1, 0, -1],
        16: [2, 1, 0, -1],
        32: [3, 2, 1, 0],
    }
    assert level_strides(Staged(4, (8, 8)), [0]) == [4, 8, 16, 32, 64]
    assert level_strides(Staged(4, (14, 14)), [0]) == [3.5, 7, 14, 28, 56]
    assert level_strides(small_pyramid(), [0, 1, 2, 3]) == [4, 8, 16, 32, 64]
    with pytest.raises(ValueError, match="patches of 16 x 8 pixels are not square"):
        level_strides(Staged(4, (16, 8)), [0])


@pytest.mark.parametrize("patch_size", [8, 14, 16, 32])
@pytest.mark.parametrize("kind", ["xcit", "simple"])
def test_levels_are_as_large_as_their_strides_say(kind, patch_size):
    backbone = Staged(4, (patch_size, patch_size))
    pyramid = build_pyramid(kind, backbone, [0, 1, 2, 3], 6)
    image_size = (8 * patch_size, 12 * patch_size)
    levels = list(pyramid([torch.randn(2, 12, 8, 12)] * 4).values())
    strides = level_strides(backbone, [0, 1, 2, 3])
    for level, stride in zip(levels[:4], strides, strict=False):
        assert level.shape == (2, 6, image_size[0] / stride, image_size[1] / stride)
    assert levels[4].shape[2:] == levels[3][..., ::2, ::2].shape[2:] and strides[4] == 2 * strides[3]


def test_what_is_between_taps_and_levels():
    """Deconv, norm, GELU, deconv; deconv; identity; max-pool."""
    neck = ResizedFeatures(6, 16).eval()
    fine, half, same, coarse = neck.levels
    assert [type(layer) for layer in fine] == [nn.ConvTranspose2d, nn.BatchNorm2d, nn.GELU, nn.ConvTranspose2d]
    assert [type(layer) for layer in half] == [nn.ConvTranspose2d]
    maps = [torch.randn(1, 6, 4, 6) for _ in range(4)]
    levels = neck(maps)
    assert torch.equal(levels[2], maps[2]) and len(list(same.parameters())) == 0
    assert torch.equal(levels[3], maps[3].unflatten(2, (2, 2)).unflatten(4, (3, 2)).amax(dim=(3, 5)))
    assert [level.shape[2:] for level in levels] == [(16, 24), (8, 12), (4, 6), (2, 3)]
    assert isinstance(coarse, nn.MaxPool2d)


def test_vitdets_pyramid_reads_the_last_map_alone():
    torch.manual_seed(0)
    pyramid = SimplePyramid(12, 6, patch_size=16)
    first, second = ([torch.randn(1, 12, 4, 4) for _ in range(3)] for _ in range(2))
    last = torch.randn(1, 12, 4, 4)
    assert all(
        torch.equal(a, b)
        for a, b in zip(pyramid([*first, last]).values(), pyramid([*second, last]).values(), strict=True)
    )
    widths = [
        [layer.out_channels for layer in level[0] if isinstance(layer, nn.ConvTranspose2d)]
        for level in list(pyramid.levels)[:2]
    ]
    assert widths == [[6, 3], [6]]


def test_swin_goes_straight_into_the_pyramid():
    backbone = small_pyramid()
    assert is_hierarchical(backbone) and not is_hierarchical(Staged(12))
    for kind in ("xcit", "simple"):
        pyramid = build_pyramid(kind, backbone, [0, 1, 2, 3], 6)
        assert isinstance(pyramid, FPN) and pyramid.resized is None
    levels = pyramid(backbone.forward_intermediates(torch.randn(1, 3, 64, 96), [0, 1, 2, 3]))
    assert [tuple(level.shape[2:]) for level in levels.values()] == [(16, 24), (8, 12), (4, 6), (2, 3), (1, 2)]
