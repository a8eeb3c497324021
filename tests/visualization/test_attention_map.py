import pytest
import torch

from tests.backbones.small_vits import small_vit


def plain_attention(backbone, images):
    """Softmax of scaled products of the class token's query with all keys, from the last attention layer's input."""
    model, inputs = backbone.model, []
    hook = model.blocks[-1].attn.register_forward_pre_hook(lambda _, arguments: inputs.append(arguments[0]))
    model.forward_features(images)
    hook.remove()
    qkv = model.blocks[-1].attn.qkv(inputs[0])[0]
    q, k, _ = (part.unflatten(-1, (backbone.num_heads, -1)) for part in qkv.chunk(3, dim=-1))
    scores = torch.einsum("hd,thd->ht", q[0], k) / q.shape[-1] ** 0.5
    return scores.softmax(dim=-1)


@pytest.mark.parametrize("family", ["class token", "registers"])
@torch.no_grad()
def test_equals_the_plain_formula(family):
    backbone = small_vit(family)
    images = torch.randn(1, 3, 3 * backbone.patch_size[0], 5 * backbone.patch_size[1])
    before = backbone(images).patch_tokens
    ours = backbone.cls_attention(images)[0]
    assert ours.shape == (3, 3, 5)
    expected = plain_attention(backbone, images)[:, backbone.num_prefix_tokens :]
    torch.testing.assert_close(ours.flatten(1), expected, rtol=1e-4, atol=1e-6)
    assert torch.equal(backbone(images).patch_tokens, before)
    assert backbone.model.blocks[-1].attn.fused_attn


@pytest.mark.parametrize("family", ["RoPE", "RoPE and registers", "mixed RoPE"])
def test_rotary_positions(family):
    backbone = small_vit(family)
    images = torch.randn(1, 3, 3 * backbone.patch_size[0], 5 * backbone.patch_size[1])
    ours = backbone.cls_attention(images)[0]
    assert ours.shape == (3, 3, 5)
    assert (ours >= 0).all()
    assert (ours.flatten(1).sum(dim=-1) < 1).all()


def test_no_class_token():
    with pytest.raises(ValueError, match="has no class token"):
        small_vit("no class token").cls_attention(torch.zeros(1, 3, 64, 64))
