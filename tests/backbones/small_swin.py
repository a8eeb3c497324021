"""A small Swin transformer: stages of 12 and 24 channels, windows of 4 x 4, built for images of 32 x 32."""

import torch

from selfpatch.backbones.backbone import Architecture
from selfpatch.backbones.build import any_size_arguments, create_timm
from selfpatch.backbones.stochastic_depth import use_subset_drop_path
from selfpatch.backbones.swin import Swin

NAME = "swin_tiny_patch4_window7_224"
ARGUMENTS = {
    "num_classes": 0, "global_pool": "", "embed_dim": 12, "depths": (1, 2), "num_heads": (2, 4), "window_size": 4,
    "img_size": 32,
}  # fmt: skip


def small_swin(**changes) -> Swin:
    arguments = ARGUMENTS | any_size_arguments(NAME) | changes
    torch.manual_seed(0)
    backbone = Swin(create_timm(NAME, **arguments), Architecture(NAME, arguments)).eval()
    use_subset_drop_path(backbone.blocks)  # as for pretraining
    for parameter in backbone.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return backbone


def small_pyramid() -> Swin:
    """Of four stages, as detectors and decoders need them: 12, 24, 48 and 96 channels."""
    return small_swin(depths=(1, 1, 1, 1), num_heads=(1, 2, 3, 4), img_size=64)
