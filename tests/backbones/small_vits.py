"""A small member of every family of vision transformers."""

import torch

from selfpatch.backbones.build import build_backbone
from selfpatch.backbones.vit import ViT
from selfpatch.config import IMAGENET_MEAN, IMAGENET_STD, BackboneConfig

FAMILIES = {
    "class token": BackboneConfig(name="vit_tiny_patch16_224", patch_size=8),
    "no class token": BackboneConfig(name="vit_tiny_patch16_224", class_token=False),
    "no final norm": BackboneConfig(name="vit_tiny_patch16_224", class_token=False, final_norm=False),
    "registers": BackboneConfig(name="vit_small_patch14_reg4_dinov2"),
    "RoPE": BackboneConfig(name="vit_small_patch16_rope_224"),
    "mixed RoPE": BackboneConfig(name="vit_small_patch16_rope_mixed_224"),
    "RoPE and registers": BackboneConfig(name="vit_small_patch16_dinov3"),
    "RoPE and positions": BackboneConfig(name="eva02_tiny_patch14_224"),
    "parallel blocks": BackboneConfig(name="vit_small_patch16_18x2_224"),
    "post-norm": BackboneConfig(name="vit_base_patch16_rpn_224"),
    "post-norm EVA": BackboneConfig(name="eva02_enormous_patch14_clip_224"),
}


def small_vit(family: str, **changes) -> ViT:
    """Width 24, 2 blocks, built for images of 4 x 4 patches; biases and scales are random too."""
    settings = vars(FAMILIES[family]) | {"embed_dim": 24, "depth": 2, "num_heads": 3, "drop_path": 0.0} | changes
    patch = settings["patch_size"] or int(settings["name"].split("patch")[1][:2])
    torch.manual_seed(0)
    backbone = build_backbone(
        BackboneConfig(**settings), (4 * patch, 4 * patch), mean=IMAGENET_MEAN, std=IMAGENET_STD
    ).eval()
    for parameter in backbone.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return backbone
