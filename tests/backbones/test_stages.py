"""What a plain vision transformer tells of itself on its way: maps of its blocks, keys, and its stochastic depth."""

import pytest
import torch
from torch import Tensor, nn

from selfpatch.backbones.pretrained import load_backbone, load_vit
from selfpatch.backbones.vit import ViT
from selfpatch.export import export_timm
from tests.backbones.small_vits import FAMILIES, small_vit

SIZES = [(4, 4), (3, 5)]  # in patches


def images(backbone: ViT, rows: int, columns: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, 3, rows * backbone.patch_size[0], columns * backbone.patch_size[1], generator=generator)


def plain_norm(x: Tensor, norm: nn.Module) -> Tensor:
    """Over the last axis, which is the channels."""
    if isinstance(norm, nn.Identity):
        return x
    centered = x - x.mean(dim=-1, keepdim=True)
    return centered / (centered.square().mean(dim=-1, keepdim=True) + norm.eps).sqrt() * norm.weight + norm.bias


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("size", SIZES)
def test_the_last_block_through_the_norm_is_the_output(family, size):
    backbone = small_vit(family)
    x = images(backbone, *size)
    with torch.no_grad():
        (last,) = backbone.forward_intermediates(x, [-1])
        tokens = backbone(x)
    assert last.shape == (2, 24, *size)
    through_norm = plain_norm(last.flatten(2).transpose(1, 2), getattr(backbone.model, "norm", nn.Identity()))
    torch.testing.assert_close(through_norm, tokens.patch_tokens, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("size", SIZES)
def test_maps_are_those_that_timm_gives(family, size):
    backbone = small_vit(family, depth=3)
    x = images(backbone, *size)
    with torch.no_grad():
        maps = backbone.forward_intermediates(x, [2, 0, -2, 0])
        expected = backbone.model.forward_intermediates(x, indices=3, norm=False, intermediates_only=True)
    for ours, block in zip(maps, (2, 0, 1, 0), strict=True):
        torch.testing.assert_close(ours, expected[block], rtol=1e-5, atol=1e-5)
    assert len(backbone.stages) == 3 and set(backbone.stages) == {(24, backbone.patch_size)}


def test_maps_follow_the_resampling_of_positions():
    plain, dino = small_vit("class token"), small_vit("class token", pos_embed_interpolation="offset")
    x = images(plain, 3, 6)
    with torch.no_grad():
        (ours,), (timms,) = (backbone.forward_intermediates(x, [0]) for backbone in (dino, plain))
    assert (ours - timms).abs().max() > 1e-3


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("size", SIZES)
def test_keys_are_those_of_the_last_attention(family, size):
    """The middle third of the projection of what enters it, patch by patch."""
    backbone = small_vit(family)
    x = images(backbone, *size)
    with torch.no_grad():
        keys = backbone.last_attention_keys(x)
        (before,) = backbone.forward_intermediates(x, [0])
    block = backbone.blocks[1]
    parts = [(part.attn, part.norm) for part in block.attns] if "parallel" in family else [(block.attn, block.norm1)]
    for i, (attention, norm) in enumerate(parts):
        if attention.qkv is not None:
            weight = attention.qkv.weight[24:48]
            bias = torch.zeros(24) if attention.qkv.bias is None else attention.qkv.bias[24:48]
        else:
            weight = attention.k_proj.weight
            bias = torch.zeros(24) if attention.k_proj.bias is None else attention.k_proj.bias
        for b, r, s in ((0, 0, 0), (1, size[0] - 1, 1), (1, 1, size[1] - 1)):
            entering = before[b, :, r, s] if "post-norm" in family else plain_norm(before[b, :, r, s], norm)
            expected = torch.stack([(row * entering).sum() for row in weight]) + bias
            torch.testing.assert_close(keys[b, 24 * i : 24 * i + 24, r, s], expected, rtol=1e-4, atol=1e-5)
    assert keys.shape == (2, 24 * len(parts), *size)


def test_nothing_stays_hooked():
    backbone = small_vit("class token")
    backbone.forward_intermediates(images(backbone, 2, 2), [0, 1])
    backbone.last_attention_keys(images(backbone, 2, 2))
    with pytest.raises(ValueError, match="20 x 16 pixels cannot be cut into patches of 8 x 8"):
        backbone.forward_intermediates(torch.zeros(1, 3, 20, 16), [0])
    with pytest.raises(ValueError, match="20 x 16 pixels cannot be cut into patches of 8 x 8"):
        backbone.last_attention_keys(torch.zeros(1, 3, 20, 16))
    assert not any(module._forward_hooks for module in backbone.modules())


def test_gradients_pass_through_maps():
    backbone = small_vit("registers").train()
    backbone.forward_intermediates(images(backbone, 2, 3), [0])[0].sum().backward()
    first, second = (block.attn.qkv.weight.grad for block in backbone.model.blocks)
    assert (first.abs().max() > 0 and second is not None and second.abs().max() == 0) or second is None


@pytest.mark.parametrize("family", ["class token", "RoPE and positions"])
def test_stochastic_depth_rises_with_the_block(family):
    backbone = small_vit(family, depth=5)
    x = images(backbone, 2, 2)
    before = backbone(x).patch_tokens
    backbone.set_drop_path(0.2)
    for i, block in enumerate(backbone.model.blocks):
        rates = [getattr(path, "drop_prob", 0.0) for path in (block.drop_path1, block.drop_path2)]
        assert rates == [pytest.approx(0.05 * i)] * 2
    assert isinstance(backbone.model.blocks[0].drop_path1, nn.Identity)
    assert torch.equal(backbone(x).patch_tokens, before)  # in evaluation mode
    backbone.set_drop_path(0.9)
    assert not torch.equal(backbone.train()(x).patch_tokens, before)
    backbone.set_drop_path(0.0)
    assert torch.equal(backbone(x).patch_tokens, before)


def test_stochastic_depth_of_one_block():
    backbone = small_vit("class token", depth=1)
    backbone.set_drop_path(0.5)
    assert isinstance(backbone.model.blocks[0].drop_path1, nn.Identity)


def test_load_vit_gives_what_load_backbone_gives(tmp_path):
    backbone = small_vit("class token")
    export_timm(backbone, tmp_path / "backbone.safetensors")
    x = images(backbone, 3, 2)
    for vit in (load_vit(tmp_path, num_heads=3), load_vit(tmp_path, pos_embed_interpolation="offset")):
        assert isinstance(vit, ViT) and not vit.training
    with torch.no_grad():
        assert torch.equal(load_vit(tmp_path)(x).patch_tokens, load_backbone(tmp_path)(x).patch_tokens)


def test_load_vit_refuses_others():
    with pytest.raises(ValueError, match="timm:swin_tiny_patch4_window7_224 is a Swin; this needs a plain vision"):
        load_vit("timm:swin_tiny_patch4_window7_224")
