"""Weights of one backbone as the start of another."""

import pytest
import torch
import torch.nn.functional as F

from selfpatch.backbones.pretrained import load_backbone, load_weights
from selfpatch.config import IMAGENET_MEAN, IMAGENET_STD
from selfpatch.errors import UserError
from selfpatch.export import export_timm
from tests.backbones.checkpoints.layouts import encoder, save, with_fixed_positions
from tests.backbones.small_vits import small_vit


@pytest.mark.parametrize("family", ["class token", "registers", "RoPE"])
def test_resamples_positions(family, tmp_path):
    source = small_vit(family)
    export_timm(source, tmp_path / "backbone.safetensors")
    target = small_vit(family)
    target.model.set_input_size(img_size=(6 * source.patch_size[0], 3 * source.patch_size[1]))
    for parameter in target.parameters():
        torch.nn.init.zeros_(parameter)
    loaded = load_weights(target, tmp_path)
    assert loaded.match.is_whole
    assert (loaded.mean, loaded.std) == (IMAGENET_MEAN, IMAGENET_STD)
    if family != "RoPE":
        assert loaded.notes == ("positions resampled from 4 x 4 to 6 x 3",)
        assert str(loaded).endswith("tensors match; positions resampled from 4 x 4 to 6 x 3")
    x = torch.randn(1, 3, 6 * source.patch_size[0], 3 * source.patch_size[1])
    with torch.no_grad():
        torch.testing.assert_close(target.eval()(x).patch_tokens, source(x).patch_tokens, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        ("class token", {"embed_dim": 48}, r"width \(embed_dim\) of 24, .* 48; set --backbone.embed-dim 24"),
        ("no class token", {"embed_dim": 48}, r"width \(embed_dim\) of 24, .* 48; set --backbone.embed-dim 24"),
        ("class token", {"depth": 4}, r"depth \(blocks\) of 2, .* 4; set --backbone.depth 2"),
        ("class token", {"num_heads": 4}, r"number of attention heads of 3, .* 4; set --backbone.num-heads 3"),
        ("RoPE and registers", {}, r"no rotary positions, .* rotary positions .*--backbone.name vit_tiny_patch16_224"),
        ("registers", {}, r"another structure .* missing: blocks.0.ls1.gamma.*--backbone.name vit_tiny_patch16_224"),
    ],
)
def test_another_backbone_is_refused(family, changes, message, tmp_path):
    """Another width, met while class tokens differed, was torch's "Sizes of tensors must match"."""
    export_timm(small_vit("class token"), tmp_path / "backbone.safetensors")
    target = small_vit(family, **changes)
    before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    with pytest.raises(UserError, match=message):
        load_weights(target, tmp_path)
    assert all(torch.equal(before[name], tensor) for name, tensor in target.state_dict().items())


@pytest.mark.parametrize("families", [("class token", "no class token"), ("no class token", "class token")])
def test_where_one_has_a_class_token(families, tmp_path):
    """Patches keep their positions, and a class token the one it had."""
    source, target = (small_vit(family, patch_size=16) for family in families)
    export_timm(source, tmp_path / "backbone.safetensors")
    prefix = target.model.pos_embed[:, :-16].clone()
    torch.nn.init.zeros_(target.model.pos_embed[:, -16:])
    loaded = load_weights(target, tmp_path)
    assert torch.equal(target.model.pos_embed[:, -16:], source.model.pos_embed[:, -16:])
    assert torch.equal(target.model.pos_embed[:, :-16], prefix)
    assert loaded.match.missing == (["cls_token"] if target.has_cls_token else [])
    note = "its class token starts anew" if target.has_cls_token else "this backbone has no cls_token: left out"
    assert note in loaded.notes


def test_resamples_patches(tmp_path):
    """An image enlarged with its patches looks to the larger patches as it looked to the smaller ones."""
    source, target = small_vit("class token", patch_size=8), small_vit("class token", patch_size=16)
    export_timm(source, tmp_path / "backbone.safetensors")
    loaded = load_weights(target, tmp_path)
    assert loaded.match.is_whole and "patches resampled from 8 x 8 to 16 x 16 pixels" in loaded.notes
    smooth = torch.linspace(-1, 1, 32)[None, None, None, :].expand(1, 3, 32, 32)
    with torch.no_grad():
        expected = source.model.patch_embed(smooth)
        ours = target.model.patch_embed(F.interpolate(smooth, scale_factor=2, mode="bilinear"))
    torch.testing.assert_close(ours, expected, rtol=0, atol=0.1)


def test_class_token_whose_position_is_part_of_it(tmp_path):
    """DeiT III and FlexiViT keep positions for patches alone; a backbone with one for the class token gets zeros."""
    tensors = encoder(grid=4)
    path = save(tmp_path / "model.pth", tensors | {"pos_embed": tensors["pos_embed"][:, 1:]})
    source, target = load_backbone(path, num_heads=3), small_vit("class token")
    load_weights(target, path, num_heads=3)
    x = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(target(x).cls_token, source(x).cls_token, rtol=1e-5, atol=1e-5)


def test_heads_of_an_unusual_width_are_the_backbones(tmp_path):
    path = save(tmp_path / "model.pth", encoder())
    target = small_vit("class token", embed_dim=24, num_heads=3)
    load_weights(target, path, num_heads=3)
    assert torch.equal(target.model.norm.bias, encoder()["norm.bias"])
    with pytest.raises(UserError, match="num-heads"):
        load_weights(target, path)


def test_known_heads_are_never_cut_anew(tmp_path):
    """MoCo-v3's ViT-S has 12; those were read as the 6 of the backbone that started from it."""
    path = save(tmp_path / "model.pth", with_fixed_positions(encoder(width=384, depth=1)))
    target = small_vit("class token", embed_dim=384, depth=1, num_heads=6)
    with pytest.raises(UserError, match="attention heads of 12, .* 6; set --backbone.num-heads 12"):
        load_weights(target, path, num_heads=6)


def test_normalization_of_the_source_comes_along(tmp_path):
    source = small_vit("class token")
    source.mean = source.std = (0.5, 0.5, 0.5)
    export_timm(source, tmp_path / "backbone.safetensors")
    loaded = load_weights(small_vit("class token"), tmp_path)
    assert loaded.mean == loaded.std == (0.5, 0.5, 0.5)


def test_missing_blocks_are_refused(tmp_path):
    tensors = {name: t for name, t in encoder().items() if name != "blocks.1.norm2.bias"}
    with pytest.raises(UserError, match="33 of 34|1 missing: blocks.1.norm2.bias"):
        load_weights(small_vit("class token"), save(tmp_path / "model.pth", tensors), num_heads=3)
