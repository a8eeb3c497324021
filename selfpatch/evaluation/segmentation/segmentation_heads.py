"""Decoders of semantic segmentation: necks that make a pyramid of a backbone's maps, heads that give classes.

Outputs, and names of weights, are mmsegmentation's, so its checkpoints of these parts load as they are. Levels are
ordered from fine to coarse. SyncBN is BatchNorm here: a head is trained on one device.
"""

import math
from collections import OrderedDict
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class FPNNeck(nn.Module):
    """Feature pyramid network: a top-down pathway adds the upsampled coarser levels to each level.

    Args:
        in_channels: of each level.

    Source: mmsegmentation's FPN without norm and activation.
    """

    def __init__(self, in_channels: Sequence[int], out_channels: int):
        super().__init__()
        self.lateral_convs = nn.ModuleList(conv(channels, out_channels, 1) for channels in in_channels)
        self.fpn_convs = nn.ModuleList(conv(out_channels, out_channels, 3) for _ in in_channels)
        self.apply(init_xavier)

    def forward(self, maps: Sequence[Float[Tensor, "B _ _ _"]]) -> list[Float[Tensor, "B D _ _"]]:
        levels = [lateral(level) for lateral, level in zip(self.lateral_convs, maps, strict=True)]
        for fine in range(len(levels) - 2, -1, -1):
            levels[fine] = levels[fine] + F.interpolate(levels[fine + 1], size=levels[fine].shape[2:], mode="nearest")
        return [smooth(level) for smooth, level in zip(self.fpn_convs, levels, strict=True)]


class MultiLevelNeck(nn.Module):
    """A pyramid of maps that all have one stride: each is resized by its factor, between two convolutions.

    Source: mmsegmentation's MultiLevelNeck without norm and activation.
    """

    def __init__(self, in_channels: Sequence[int], out_channels: int, scales: Sequence[float] = (4, 2, 1, 0.5)):
        super().__init__()
        self.scales = tuple(scales)
        self.lateral_convs = nn.ModuleList(conv(channels, out_channels, 1) for channels in in_channels)
        self.convs = nn.ModuleList(conv(out_channels, out_channels, 3) for _ in scales)
        self.apply(init_xavier)

    def forward(self, maps: Sequence[Float[Tensor, "B _ R S"]]) -> list[Float[Tensor, "B D _ _"]]:
        levels = []
        for scale, lateral, smooth, level in zip(self.scales, self.lateral_convs, self.convs, maps, strict=True):
            level = lateral(level)
            if min(level.shape[2:]) * scale >= 1:  # a grid of one row is not halved
                level = F.interpolate(level, scale_factor=scale, mode="bilinear")
            levels.append(smooth(level))
        return levels


class SemanticFPNHead(nn.Module):
    """Every level is convolved and doubled in size until it is as fine as the first one; their sum gives the classes.

    Args:
        strides: of each level; they say how often it is doubled. Maps that have another size in the end are resized,
            so that maps of one stride are taken too, as from a plain vision transformer.

    Source: Panoptic Feature Pyramid Networks (CVPR 2019), sec. 3.1; mmsegmentation's FPNHead.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        num_classes: int,
        *,
        strides: Sequence[int] = (4, 8, 16, 32),
        dropout: float = 0.1,
        align_corners: bool = False,
    ):
        super().__init__()
        self.align_corners = align_corners
        self.scale_heads = nn.ModuleList()
        for stride in strides:
            layers: list[nn.Module] = []
            for i in range(max(1, int(math.log2(stride) - math.log2(strides[0])))):
                layers.append(conv_norm_relu(in_channels if i == 0 else channels, channels, 3))
                if stride != strides[0]:
                    layers.append(nn.Upsample(scale_factor=2, mode="bilinear", align_corners=align_corners))
            self.scale_heads.append(nn.Sequential(*layers))
        self.dropout = nn.Dropout2d(dropout)
        self.conv_seg = classifier(channels, num_classes)

    def forward(self, levels: Sequence[Float[Tensor, "B D _ _"]]) -> Float[Tensor, "B C R S"]:
        first, *others = (head(level) for head, level in zip(self.scale_heads, levels, strict=True))
        for other in others:
            first = first + resize(other, first, self.align_corners)
        return self.conv_seg(self.dropout(first))


class UPerHead(nn.Module):
    """Pyramid pooling of the coarsest level, a feature pyramid from there, and all levels joined at the finest.

    Args:
        in_channels: of each level.

    Source: Unified Perceptual Parsing (ECCV 2018); mmsegmentation's UPerHead.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        channels: int,
        num_classes: int,
        *,
        pool_scales: Sequence[int] = (1, 2, 3, 6),
        dropout: float = 0.1,
        align_corners: bool = False,
    ):
        super().__init__()
        self.align_corners = align_corners
        coarsest = in_channels[-1]
        self.psp_modules = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(scale), conv_norm_relu(coarsest, channels, 1)) for scale in pool_scales
        )
        self.bottleneck = conv_norm_relu(coarsest + len(pool_scales) * channels, channels, 3)
        self.lateral_convs = nn.ModuleList(conv_norm_relu(width, channels, 1) for width in in_channels[:-1])
        self.fpn_convs = nn.ModuleList(conv_norm_relu(channels, channels, 3) for _ in in_channels[:-1])
        self.fpn_bottleneck = conv_norm_relu(len(in_channels) * channels, channels, 3)
        self.dropout = nn.Dropout2d(dropout)
        self.conv_seg = classifier(channels, num_classes)

    def forward(self, maps: Sequence[Float[Tensor, "B _ _ _"]]) -> Float[Tensor, "B C R S"]:
        # 1. Pyramid pooling of the coarsest level.
        pooled = [resize(pool(maps[-1]), maps[-1], self.align_corners) for pool in self.psp_modules]
        top = self.bottleneck(torch.cat([maps[-1], *pooled], dim=1))

        # 2. Top-down pathway.
        levels = [lateral(level) for lateral, level in zip(self.lateral_convs, maps[:-1], strict=True)] + [top]
        for fine in range(len(levels) - 2, -1, -1):
            levels[fine] = levels[fine] + resize(levels[fine + 1], levels[fine], self.align_corners)

        # 3. Fuse all levels at the finest resolution.
        levels = [smooth(level) for smooth, level in zip(self.fpn_convs, levels[:-1], strict=True)] + [top]
        joined = torch.cat([resize(level, levels[0], self.align_corners) for level in levels], dim=1)
        return self.conv_seg(self.dropout(self.fpn_bottleneck(joined)))


class FCNHead(nn.Module):
    """One convolution and the classes: an auxiliary loss on one level, dropped after training.

    Source: mmsegmentation's FCNHead with num_convs=1 and concat_input=False.
    """

    def __init__(self, in_channels: int, channels: int, num_classes: int, *, dropout: float = 0.1):
        super().__init__()
        self.convs = nn.Sequential(conv_norm_relu(in_channels, channels, 3))
        self.dropout = nn.Dropout2d(dropout)
        self.conv_seg = classifier(channels, num_classes)

    def forward(self, level: Float[Tensor, "B D R S"]) -> Float[Tensor, "B C R S"]:
        return self.conv_seg(self.dropout(self.convs(level)))


def conv(in_channels: int, out_channels: int, kernel_size: int) -> nn.Sequential:
    """A convolution that keeps the size, under mmsegmentation's name for it."""
    layer = nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2)
    return nn.Sequential(OrderedDict(conv=layer))


def conv_norm_relu(in_channels: int, out_channels: int, kernel_size: int) -> nn.Sequential:
    layer = nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=False)
    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(OrderedDict(conv=layer, bn=nn.BatchNorm2d(out_channels), activate=nn.ReLU()))


def classifier(channels: int, num_classes: int) -> nn.Conv2d:
    layer = nn.Conv2d(channels, num_classes, 1)
    nn.init.normal_(layer.weight, std=0.01)
    nn.init.zeros_(layer.bias)
    return layer


def init_xavier(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)


def resize(
    level: Float[Tensor, "B D _ _"], like: Float[Tensor, "B _ R S"], align_corners: bool
) -> Float[Tensor, "B D R S"]:
    return F.interpolate(level, size=like.shape[2:], mode="bilinear", align_corners=align_corners)
