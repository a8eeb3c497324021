"""Feature pyramids for detection: maps of five strides from a plain vision transformer of one stride, or from Swin.

The strides of a plain transformer are its patch size times powers of two, the nearest to 4, 8, 16, 32: exactly these
for patches of 8 and 16 px, and 3.5, 7, 14, 28 for 14 px. The fifth level halves the fourth.
"""

import math
from collections import OrderedDict
from collections.abc import Sequence

import torch.nn.functional as F
from jaxtyping import Float
from timm.layers import LayerNorm2d
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from selfpatch.backbones.backbone import Backbone
from selfpatch.errors import UserError
from selfpatch.evaluation.features import NUM_LEVELS, is_hierarchical

FINEST_PX = 4  # the stride that the finest level comes nearest to

# Level names -> maps, fine to coarse; torchvision's detectors take them so.
Levels = OrderedDict[str, Float[Tensor, "B _ _ _"]]


def doublings(patch_size: int) -> list[int]:
    """Number of doublings of a patch map for each level; below 0: halvings."""
    finest = round(math.log2(patch_size / FINEST_PX))
    return [finest - level for level in range(NUM_LEVELS)]


class ResizedFeatures(nn.Module):
    """Four maps of one stride, from four depths, become four strides: by transposed convolutions or max-pooling.

    Two doublings are deconv-norm-GELU-deconv, one is a deconv, none is the map itself.

    Source: facebookresearch/xcit detection/backbone/xcit.py. Differs: batch norm of one process.
    """

    def __init__(self, embed_dim: int, patch_size: int):
        super().__init__()
        self.levels = nn.ModuleList(
            resize_layers([embed_dim] * (1 + max(count, 0)), count, nn.BatchNorm2d) for count in doublings(patch_size)
        )

    def forward(self, maps: Sequence[Float[Tensor, "B D R S"]]) -> list[Float[Tensor, "B D _ _"]]:
        return [level(feature_map) for level, feature_map in zip(self.levels, maps, strict=True)]


class FPN(nn.Module):
    """A feature pyramid network on maps of four depths.

    Args:
        embed_dims: of each map.
        patch_size: of the plain transformer that the maps are from; None: they already are a pyramid.

    Source: Feature Pyramid Networks (CVPR 2017).
    """

    def __init__(self, embed_dims: Sequence[int], channels: int, *, patch_size: int | None):
        super().__init__()
        self.resized = None if patch_size is None else ResizedFeatures(embed_dims[0], patch_size)
        self.fpn = FeaturePyramidNetwork(list(embed_dims), channels, extra_blocks=LastLevelMaxPool())

    def forward(self, maps: Sequence[Float[Tensor, "B _ _ _"]]) -> Levels:
        levels = maps if self.resized is None else self.resized(maps)
        return self.fpn(OrderedDict((str(i), level) for i, level in enumerate(levels)))


class SimplePyramid(nn.Module):
    """ViTDet's: all levels from the last map alone, without connections between them.

    Each doubling halves the width; a 1x1 and a 3x3 convolution with layer norm over channels follow.

    Source: Exploring Plain Vision Transformer Backbones for Object Detection (ECCV 2022), sec. 3; detectron2
    modeling/backbone/vit.py.
    """

    def __init__(self, embed_dim: int, channels: int, *, patch_size: int):
        super().__init__()
        self.levels = nn.ModuleList()
        for count in doublings(patch_size):
            widths = [embed_dim // 2**i for i in range(1 + max(count, 0))]
            self.levels.append(
                nn.Sequential(
                    resize_layers(widths, count, LayerNorm2d),
                    nn.Conv2d(widths[-1], channels, 1, bias=False),
                    LayerNorm2d(channels),
                    nn.Conv2d(channels, channels, 3, padding=1, bias=False),
                    LayerNorm2d(channels),
                )
            )

    def forward(self, maps: Sequence[Float[Tensor, "B D R S"]]) -> Levels:
        levels: Levels = OrderedDict((str(i), level(maps[-1])) for i, level in enumerate(self.levels))
        levels["pool"] = F.max_pool2d(levels[str(NUM_LEVELS - 1)], kernel_size=1, stride=2)
        return levels


def resize_layers(widths: Sequence[int], count: int, norm: type[nn.Module]) -> nn.Module:
    """Layers that double a map `count` times, or halve it -count times.

    Args:
        widths: channels before the first and after each doubling.
    """
    if count < 0:
        return nn.MaxPool2d(2**-count)
    layers: list[nn.Module] = []
    for i in range(count):
        if i > 0:
            layers += [norm(widths[i]), nn.GELU()]
        layers.append(nn.ConvTranspose2d(widths[i], widths[i + 1], kernel_size=2, stride=2))
    return nn.Sequential(*layers)


def level_strides(backbone: Backbone, stages: Sequence[int]) -> list[float]:
    """Pixels between neighbours on each of the five levels.

    Raises:
        UserError: patches that are not square.
    """
    taken = [backbone.stages[stage].stride_px for stage in stages]
    if any(rows != columns for rows, columns in taken):
        raise UserError(
            f"patches of {taken[0][0]} x {taken[0][1]} pixels are not square, as detection needs them; choose another "
            "backbone"
        )
    if is_hierarchical(backbone):
        strides = [float(rows) for rows, _ in taken]
    else:
        strides = [taken[0][0] / 2.0**count for count in doublings(taken[0][0])]
    return [*strides, 2 * strides[-1]]


def build_pyramid(kind: str, backbone: Backbone, stages: Sequence[int], channels: int) -> nn.Module:
    """ "xcit" or "simple" for a plain transformer; Swin's stages go straight into the feature pyramid network."""
    embed_dims = [backbone.stages[stage].embed_dim for stage in stages]
    if is_hierarchical(backbone):
        return FPN(embed_dims, channels, patch_size=None)
    if kind == "simple":
        return SimplePyramid(embed_dims[-1], channels, patch_size=backbone.patch_size[0])
    return FPN(embed_dims, channels, patch_size=backbone.patch_size[0])
