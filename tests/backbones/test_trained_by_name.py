"""A pretraining step of backbones as recipes and options name them: Swin t, s and b, patches of 8 to 32 pixels."""

from dataclasses import replace

import pytest
import timm
import torch

from selfpatch.backbones.build import build_backbone
from selfpatch.backbones.swin import Swin
from selfpatch.config import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    BackboneConfig,
    DINOConfig,
    ObjectivesConfig,
    PretrainConfig,
)
from selfpatch.config.masks import MaskConfig
from selfpatch.config.objectives.ibot import IBOTConfig
from selfpatch.export import export_timm
from selfpatch.pretraining.masks import draw_masks
from selfpatch.pretraining.student_teacher import build_student_teacher
from selfpatch.pretraining.views import Views
from selfpatch.recipes import add_objectives
from tests.small_models import HEAD

SMALL_VIT = {"embed_dim": 24, "depth": 2, "num_heads": 3}
BY_NAME = {
    "swin_tiny_patch4_window7_224": {"embed_dim": 12},
    "swin_small_patch4_window7_224": {"embed_dim": 12},
    "swin_base_patch4_window7_224": {"embed_dim": 16},
    "vit_small_patch8_224": SMALL_VIT,
    "vit_small_patch14_reg4_dinov2": SMALL_VIT,
    "vit_small_patch16_dinov3": SMALL_VIT,
    "vit_small_patch32_224": SMALL_VIT,
}
GRID = (3, 4)  # 96 x 128 px of a Swin, whose largest window has 7 places and is cut to 3 x 4 in the last stage


@pytest.mark.parametrize("name", BY_NAME)
def test_a_masked_step_on_crops_that_are_not_square_and_the_file_of_it(name, tmp_path):
    start = PretrainConfig(
        backbone=BackboneConfig(name=name, **BY_NAME[name]), objectives=ObjectivesConfig(dino=DINOConfig(head=HEAD))
    )
    config = add_objectives(start, "selfpatch", "ibot")
    assert config.objectives.selfpatch is not None
    ibot = IBOTConfig(head=HEAD, masks=MaskConfig(ratio=(0.3, 0.5), prob=1.0))
    patch_level = replace(config.objectives.selfpatch, head=HEAD, padding_mode="none", num_positives=3)
    config = replace(config, objectives=replace(config.objectives, ibot=ibot, selfpatch=patch_level))
    patch = 32 if name.startswith("swin") else int(name.split("patch")[1].split("_")[0])
    rows, columns = (places * patch for places in GRID)
    torch.manual_seed(0)
    backbone = build_backbone(config.backbone, (rows, columns), mean=IMAGENET_MEAN, std=IMAGENET_STD)
    assert backbone.patch_size == (patch, patch) and isinstance(backbone, Swin) == name.startswith("swin")
    student_teacher = build_student_teacher(backbone, config, steps_per_epoch=4).train()
    masks = draw_masks(ibot.masks, range(2), seed=0, step=0, num_crops=2, grid_size=GRID)
    views = Views(torch.randn(2, 2, 3, rows, columns), torch.randn(1, 2, 3, 3 * patch, 3 * patch), masks)
    loss, _ = student_teacher(views, 0)
    loss.backward()
    assert torch.isfinite(loss)
    without = [
        key
        for key, p in student_teacher.student.named_parameters()
        if p.requires_grad and (p.grad is None or not p.grad.any())
    ]
    assert all(key.endswith(("attn.k.bias", "relative_position_bias_table")) for key in without), without
    assert not any(p.grad is not None for p in student_teacher.teacher.parameters())

    exported = student_teacher.teacher.export_backbone()
    model = eval(export_timm(exported, tmp_path / "backbone.safetensors"), {"timm": timm}).eval()
    images = torch.randn(1, 3, rows, columns)
    with torch.no_grad():
        ours, plain = exported(images).patch_tokens, model.forward_features(images)
    plain = plain.flatten(1, 2) if plain.ndim == 4 else plain
    torch.testing.assert_close(plain[:, -ours.shape[1] :], ours, rtol=1e-4, atol=1e-5)
