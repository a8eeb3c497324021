"""MoCo-v3's and MAE's sines and cosines, told apart."""

import pytest
import torch

from selfpatch.backbones.checkpoints.fixed_positions import find_fixed_positions
from selfpatch.backbones.pretrained import load_backbone
from tests.backbones.checkpoints.layouts import encoder, save, with_fixed_positions, without
from tests.reference import plain_vit
from tests.reference.plain_position_resampling import resample_positions_antialiased

SMALL = encoder(width=384, depth=1)


def test_second_patch_by_hand():
    """Width 8, so frequencies 1 and 0.01: the patch at row 0, column 1, as each program's formula has it."""
    moco = with_fixed_positions(encoder(width=8))["pos_embed"][0, 2]
    torch.testing.assert_close(moco, torch.tensor([0, 0, 1, 1, 0.84147, 0.01, 0.54030, 0.99995]), rtol=0, atol=1e-5)
    mae = with_fixed_positions(encoder(width=8), "column first")["pos_embed"][0, 2]
    torch.testing.assert_close(mae, torch.tensor([0.84147, 0.01, 0.54030, 0.99995, 0, 0, 1, 1]), rtol=0, atol=1e-5)


@pytest.mark.parametrize("order", ["row first", "column first"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_order_is_found(order, dtype):
    tensors = with_fixed_positions(SMALL, order)
    assert find_fixed_positions({"pos_embed": tensors["pos_embed"].to(dtype)}) == order


@pytest.mark.parametrize(
    "tensors",
    [
        SMALL,
        {},
        {"pos_embed": torch.zeros(1, 10, 24)},
        {"pos_embed": torch.zeros(1, 1, 24)},
        {"pos_embed": torch.zeros(10, 24)},
        {"pos_embed": torch.zeros(1, 0, 24)},
        {"pos_embed": torch.zeros(1, 11, 24)},
    ],
)
def test_learned_positions_are_none(tensors):
    assert find_fixed_positions(tensors) is None


@pytest.mark.parametrize(
    ("order", "heads", "says"),
    [
        ("row first", 12, "read as MoCo-v3 | 12 attention heads of 32 channels"),
        ("column first", 6, "read as MAE | MAE published no ViT-S: 6 attention heads are assumed"),
    ],
)
def test_small_encoders_with_fixed_positions(order, heads, says, tmp_path):
    """MAE's ViT-S was read as MoCo-v3's, with 12 heads."""
    tensors = with_fixed_positions(SMALL, order)
    backbone = load_backbone(save(tmp_path / "model.pth", {"model": tensors}))
    image = torch.randn(3, 24, 24, generator=torch.Generator().manual_seed(1))
    cls_token, patch_tokens = plain_vit.forward(tensors, image, heads, resample_positions_antialiased)
    with torch.no_grad():
        tokens = backbone(image[None])
    assert backbone.num_heads == heads
    torch.testing.assert_close(tokens.patch_tokens[0], patch_tokens.float(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(tokens.cls_token[0], cls_token.float(), rtol=1e-5, atol=1e-5)
    assert all(text in "\n".join(backbone.notes) for text in says.split(" | "))
    assert load_backbone(tmp_path / "model.pth", num_heads=6).num_heads == 6


def test_pretraining_state_of_mae(tmp_path):
    """The decoder and the mask token stay behind; ImageNet's normalization is known."""
    tensors = with_fixed_positions(encoder(width=192, depth=1), "column first")
    decoder = {"mask_token": torch.zeros(1, 1, 64), "decoder_embed.weight": torch.zeros(64, 192)}
    decoder |= {"decoder_pos_embed": torch.zeros(1, 10, 64), "decoder_blocks.0.norm1.weight": torch.zeros(64)}
    backbone = load_backbone(save(tmp_path / "model.pth", {"model": tensors | decoder, "epoch": 3}))
    notes = "\n".join(backbone.notes)
    assert "read as MAE" in notes and "assumed" not in notes
    assert "left out, as no part of the encoder: decoder_blocks, decoder_embed, decoder_pos_embed, mask_token" in notes


def test_target_encoder_of_ijepa(tmp_path):
    """No class token; the averaged network is what its authors evaluate."""
    tensors = without(encoder(width=192, depth=1), "cls_token") | {"pos_embed": torch.zeros(1, 9, 192)}
    tensors = with_fixed_positions(tensors, "column first")
    other = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
    networks = {name: {f"module.{k}": t for k, t in which.items()} for name, which in
                (("encoder", other), ("target_encoder", tensors))}  # fmt: skip
    backbone = load_backbone(save(tmp_path / "model.pth", networks | {"predictor": {}}))
    assert torch.equal(backbone.model.blocks[0].attn.qkv.weight, tensors["blocks.0.attn.qkv.weight"])
    assert not backbone.has_cls_token and "read as I-JEPA" in backbone.notes
    assert "target_encoder.module of the checkpoint: the averaged network" in backbone.notes[1]
