"""Decoders: shapes, numbers of parameters, starts. Their outputs are held to mmsegmentation's by the parity kits."""

import pytest
import torch

from selfpatch.evaluation.segmentation.segmentation_heads import (
    FCNHead,
    FPNNeck,
    MultiLevelNeck,
    SemanticFPNHead,
    UPerHead,
)


def num_parameters(module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_numbers_of_parameters_are_mmsegmentations():
    with torch.device("meta"):
        assert num_parameters(FPNNeck([384] * 4, 256)) == 2_754_560
        assert num_parameters(SemanticFPNHead(256, 128, 150)) == 1_643_158
        assert num_parameters(UPerHead([384] * 4, 512, 150)) == 29_187_222
        assert num_parameters(FCNHead(384, 256, 150)) == 923_798
        assert num_parameters(MultiLevelNeck([384] * 4, 384)) == 4 * (384 * 384 + 384) * 1 + 4 * (384 * 384 * 9 + 384)


def maps(sizes: list[tuple[int, int]], channels: list[int]) -> list[torch.Tensor]:
    torch.manual_seed(0)
    return [torch.randn(2, width, *size) for size, width in zip(sizes, channels, strict=True)]


PYRAMID = [(12, 20), (6, 10), (3, 5), (2, 3)]


@pytest.mark.parametrize("sizes", [[(6, 10)] * 4, PYRAMID])
def test_scores_have_the_finest_size(sizes):
    levels = FPNNeck([5, 6, 7, 8], 9)(maps(sizes, [5, 6, 7, 8]))
    assert [level.shape for level in levels] == [(2, 9, *size) for size in sizes]
    assert SemanticFPNHead(9, 4, 3)(levels).shape == (2, 3, *sizes[0])
    assert UPerHead([5, 6, 7, 8], 4, 3)(maps(sizes, [5, 6, 7, 8])).shape == (2, 3, *sizes[0])
    assert FCNHead(9, 4, 3)(levels[3]).shape == (2, 3, *sizes[3])


def test_a_pyramid_out_of_maps_of_one_stride():
    neck = MultiLevelNeck([6] * 4, 5)
    assert [level.shape for level in neck(maps([(5, 7)] * 4, [6] * 4))] == [
        (2, 5, 20, 28),
        (2, 5, 10, 14),
        (2, 5, 5, 7),
        (2, 5, 2, 3),
    ]
    assert neck(maps([(1, 7)] * 4, [6] * 4))[3].shape == (2, 5, 1, 7)


def test_odd_sides_are_halved_by_the_factor():
    """As mmsegmentation does: a place of the half map lies between the places 2 i and 2 i + 1 of the whole one."""
    neck = MultiLevelNeck([1], 1, scales=[0.5])
    with torch.no_grad():
        for layer, weight in ((neck.lateral_convs[0].conv, 1.0), (neck.convs[0].conv, 0.0)):
            layer.weight.fill_(weight)
            layer.bias.zero_()
        neck.convs[0].conv.weight[0, 0, 1, 1] = 1.0  # both leave the map as it is
        row = torch.arange(5.0).expand(1, 1, 5, 5)
        assert neck([row])[0][0, 0, 0].tolist() == [0.5, 2.5]


def test_the_coarsest_level_reaches_the_finest():
    torch.manual_seed(0)
    neck, head, uper = FPNNeck([4] * 4, 4).eval(), SemanticFPNHead(4, 4, 3).eval(), UPerHead([4] * 4, 4, 3).eval()
    inputs = [level.requires_grad_() for level in maps(PYRAMID, [4] * 4)]
    for scores in (neck(inputs)[0], head(neck(inputs)), uper(inputs)):
        gradients = torch.autograd.grad(scores.square().sum(), inputs[-1])
        assert gradients[0].abs().max() > 0


def test_starts_are_mmsegmentations():
    torch.manual_seed(0)
    neck, head = FPNNeck([64] * 4, 64), SemanticFPNHead(64, 64, 50)
    bound = (6 / (64 * 9 + 64 * 9)) ** 0.5  # Xavier, uniform
    weight = neck.fpn_convs[0].conv.weight
    assert 0.98 * bound < weight.abs().max() <= bound and neck.fpn_convs[0].conv.bias.abs().max() == 0
    kaiming = (2 / (64 * 9)) ** 0.5  # fan out, normal
    assert head.scale_heads[0][0].conv.weight.std().item() == pytest.approx(kaiming, rel=0.02)
    assert head.conv_seg.weight.std().item() == pytest.approx(0.01, rel=0.05) and head.conv_seg.bias.abs().max() == 0


def test_dropout_takes_whole_channels_in_training_only():
    head = FCNHead(4, 64, 3, dropout=0.5)
    dropped = head.dropout(torch.ones(2, 64, 3, 3)).flatten(2)
    assert (dropped.std(dim=-1) == 0).all() and 0.3 < (dropped[..., 0] == 0).float().mean() < 0.7
    head.eval()
    level = torch.randn(1, 4, 5, 5)
    assert torch.equal(head(level), head(level))
