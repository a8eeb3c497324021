"""Backbones from the config: by name, with the crops' normalization, and what a family does not have is refused."""

from dataclasses import replace

import pytest
import timm
import torch

from selfpatch.backbones.build import build_backbone, is_swin
from selfpatch.backbones.pretrained import load_backbone
from selfpatch.backbones.swin import Swin
from selfpatch.backbones.vit import ViT
from selfpatch.backbones.without_values import without_values
from selfpatch.config import BackboneConfig
from selfpatch.export import export_timm

MEAN, STD = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
SWIN = BackboneConfig(name="swin_tiny_patch4_window7_224", embed_dim=12)
VIT = BackboneConfig(name="vit_tiny_patch16_224", embed_dim=24, depth=2, num_heads=3)


def build(config: BackboneConfig, size: tuple[int, int]):
    return build_backbone(config, size, mean=MEAN, std=STD)


@pytest.mark.parametrize(("config", "kind"), [(VIT, ViT), (SWIN, Swin)])
def test_normalization_reaches_the_exported_file(config, kind, tmp_path):
    backbone = build(config, (64, 96))
    assert isinstance(backbone, kind) and (backbone.mean, backbone.std) == (MEAN, STD)
    export_timm(backbone, tmp_path / "backbone.safetensors")
    loaded = load_backbone(tmp_path)
    assert isinstance(loaded, kind) and (loaded.mean, loaded.std) == (MEAN, STD)
    assert loaded.image_size == (64, 96)


@pytest.mark.parametrize("config", [VIT, SWIN])
def test_a_network_without_values_has_the_shapes_of_one_with(config):
    with without_values():
        empty = build(config, (64, 96))
    full = build(config, (64, 96))
    assert all(p.is_meta for p in empty.parameters()) and not any(p.is_meta for p in full.parameters())
    shapes = [{name: (p.shape, p.dtype) for name, p in backbone.state_dict().items()} for backbone in (empty, full)]
    assert shapes[0] == shapes[1]
    assert full.model.patch_embed.proj.weight.std() > 0


def test_which_names_are_swin():
    assert is_swin("swin_tiny_patch4_window7_224.ms_in1k") and is_swin("swin_s3_tiny_224")
    assert not any(is_swin(name) for name in ("vit_tiny_patch16_224", "swinv2_tiny_window8_256", "swin_unheard_of"))


def test_swin_at_its_own_and_other_sizes(tmp_path):
    """Windows are at most as large as the map that they are built for, as timm has it."""
    backbone = build(replace(SWIN, drop_path=0.3), (128, 96))
    assert (backbone.patch_size, backbone.embed_dim, backbone.num_heads) == ((32, 32), 96, 24)
    assert [stage.embed_dim for stage in backbone.stages] == [12, 24, 48, 96]
    assert [layer.blocks[0].window_size for layer in backbone.model.layers] == [(7, 7), (7, 7), (7, 6), (4, 3)]
    rates = [getattr(block.drop_path1, "drop_prob", 0.0) for block in backbone.blocks]
    assert rates[0] == 0 and rates[-1] == pytest.approx(0.3) and rates == sorted(rates)
    plain = timm.create_model(SWIN.name, num_classes=0, global_pool="", embed_dim=12, img_size=(128, 96)).eval()
    plain.load_state_dict(backbone.model.state_dict())
    images = torch.randn(1, 3, 128, 96)
    with torch.no_grad():
        expected = plain.forward_features(images).flatten(1, 2)
        torch.testing.assert_close(backbone.eval()(images).patch_tokens, expected)
        for rows, columns in ((1, 1), (5, 2), (8, 9)):
            tokens = backbone(torch.randn(1, 3, 32 * rows, 32 * columns))
            assert tokens.grid_size == (rows, columns) and tokens.patch_tokens.isfinite().all()
    # Where windows are shifted, they are by half of their size, in the last stage too.
    assert backbone.blocks[-1].shift_size == (2, 1)


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ({"depth": 2}, "backbone.depth is 2, but swin_tiny.* blocks and attention heads by stage"),
        ({"num_heads": 3}, "backbone.num-heads is 3"),
        ({"class_token": True}, "backbone.class-token is True"),
        ({"pos_embed_interpolation": "offset"}, "backbone.pos-embed-interpolation is offset.* positions are relative"),
        ({"image_token": "class_token"}, "backbone.image-token is class_token.* set it to mean"),
    ],
)
def test_settings_that_swin_does_not_have(setting, named):
    with pytest.raises(ValueError, match=named):
        build(replace(SWIN, **setting), (64, 64))
    assert isinstance(build(replace(SWIN, class_token=False), (64, 64)), Swin)


@pytest.mark.parametrize("name", ["vit_pwee_patch16_reg1_gap_256", "vit_dpwee_patch16_reg1_gap_256"])
def test_blocks_that_cannot_be_taken_apart(name):
    """Attention and MLP come from one projection: they run as timm wrote them, and settings without effect are said."""
    backbone = build(BackboneConfig(name=name, embed_dim=24, depth=2, num_heads=3, drop_path=0.2), (64, 64)).eval()
    images = torch.randn(2, 3, 32, 48)
    with pytest.warns(UserWarning, match="'selective' has no effect on blocks of type .*Block"):
        backbone.set_activation_checkpointing("selective")
    with pytest.warns(UserWarning, match="compile has no effect on blocks of type"):
        backbone.compile_blocks("eager")
    backbone.compile_blocks(None)
    backbone.set_activation_checkpointing("none")
    tokens = backbone(images)
    assert tokens.grid_size == (2, 3) and tokens.cls_token is None
    backbone.set_activation_checkpointing("full")
    backbone.train()(images).patch_tokens.sum().backward()
    assert backbone.model.patch_embed.proj.weight.grad.any()
    backbone.set_drop_path(0.5)
    assert backbone.blocks[1].drop_path.drop_prob == 0.5


@pytest.mark.parametrize("name", ["vit_pwee_patch16_reg1_gap_256"])
@torch.no_grad()
def test_keys_of_one_projection(name):
    backbone = build(BackboneConfig(name=name, embed_dim=24, depth=2, num_heads=3), (64, 64)).eval()
    images = torch.randn(2, 3, 32, 48)
    keys, (before,) = backbone.last_attention_keys(images), backbone.forward_intermediates(images, [0])
    block = backbone.blocks[-1]
    _, _, k, _ = block.in_proj(block.in_norm(before.permute(0, 2, 3, 1))).split(block.in_split, dim=-1)
    torch.testing.assert_close(keys, k.permute(0, 3, 1, 2))
