"""Files of timm's models, tiny, against timm's own forward: with config.json, by name, and by structure alone."""

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file

from selfpatch.backbones.pretrained import load_backbone
from selfpatch.errors import UserError
from selfpatch.export import export_timm
from tests.backbones.checkpoints.layouts import prefixed, save

# By structure alone each gives timm's features, or is refused with this: never other features without a word.
MODELS = {
    "vit_tiny_patch16_224": None,
    "vit_base_patch16_224_miil": None,  # no qkv bias
    "vit_base_patch16_clip_224": "GELU or with QuickGELU",
    "vit_base_patch16_clip_quickgelu_224": "GELU or with QuickGELU",
    "vit_base_patch16_rpn_224": "before attention and feed-forward, or after them",
    "vit_base_patch16_siglip_224": None,  # attention pooling, no class token
    "vit_medium_patch16_gap_240": None,  # layer scale, no qkv bias, no class token, fc_norm
    "vit_medium_patch16_reg4_gap_256": None,  # registers, no class token
    "vit_betwixt_patch16_reg4_gap_256": None,
    "vit_small_patch14_dinov2": None,
    "vit_small_patch14_reg4_dinov2": None,
    "vit_giant_patch14_dinov2": None,  # SwiGLU
    "vit_giant_patch14_reg4_dinov2": None,
    "vit_intern300m_patch14_448": None,
    "flexivit_small": None,  # positions for patches alone
    "deit3_small_patch16_224": None,
    "eva02_tiny_patch14_224": "separate queries, keys and values|queries and values alone",
    "eva_giant_patch14_224": "queries and values alone",
    "vit_small_patch16_rope_224": "no vision transformer of a known layout",
    "vit_small_patch16_rope_mixed_224": "rotary positions",
    "vit_small_patch16_dinov3": None,
    "vit_small_patch16_dinov3_qkvb": None,
    "vit_small_plus_patch16_dinov3": None,
    "vit_small_patch16_18x2_224": "parallel blocks",
    "vit_base_patch16_xp_224": "parallel blocks",
    "aimv2_large_patch14_224": "gated feed-forward in two layers|RMS",
    "vit_pe_core_tiny_patch16_384": "rotary|qk|known layout|RMS|missing|GELU",
}
SIZES: dict[str, Any] = {"embed_dim": 24, "depth": 2, "num_heads": 3, "img_size": 64}


def tiny(name: str, **changes: Any) -> Any:
    """Random in every tensor, with a classifier of 5 classes."""
    torch.manual_seed(0)
    model = timm.create_model(name, **SIZES | {"num_classes": 5} | changes).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


def features(model: Any, image: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model.forward_features(image)[:, model.num_prefix_tokens :]


def write(folder: Path, model: Any, config: dict[str, Any] | None = None, name: str = "model.safetensors") -> Path:
    folder.mkdir(exist_ok=True)
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, folder / name)
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return folder / name


def config_of(name: str, **more: Any) -> dict[str, Any]:
    return {"architecture": name, "num_classes": 5, "model_args": {**SIZES, "img_size": [64, 64]}, **more}


def side(name: str) -> int:
    return 56 if "patch14" in name else 64


@pytest.mark.parametrize("name", MODELS)
def test_folder_with_config(name, tmp_path):
    model = tiny(name, img_size=side(name))
    config = config_of(name)
    config["model_args"]["img_size"] = [side(name)] * 2
    write(tmp_path / "model", model, config)
    backbone = load_backbone(tmp_path / "model")
    image = torch.randn(1, 3, side(name), side(name))
    with torch.no_grad():
        torch.testing.assert_close(backbone(image).patch_tokens, features(model, image), rtol=1e-5, atol=1e-5)
    assert f"read as timm's {name}" in backbone.notes


@pytest.mark.parametrize("name", MODELS)
def test_file_alone(name, tmp_path):
    model = tiny(name, img_size=side(name))
    file = write(tmp_path, model, name="weights.safetensors")
    if MODELS[name] is not None:
        with pytest.raises(UserError, match=MODELS[name]):
            load_backbone(file, num_heads=3)
        return
    backbone = load_backbone(file, num_heads=3)
    image = torch.randn(1, 3, side(name), side(name))
    with torch.no_grad():
        torch.testing.assert_close(backbone(image).patch_tokens, features(model, image), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "name",
    [
        "vit_base_patch16_clip_224",
        "vit_base_patch16_clip_quickgelu_224",
        "vit_base_patch16_rpn_224",
        "eva02_tiny_patch14_224",
    ],
)
def test_name_of_the_file(name, tmp_path):
    """What structure leaves open is in the name, also of another size, as a tag, or of the folder."""
    model = tiny(name, img_size=side(name))
    image = torch.randn(1, 3, side(name), side(name))
    for file in (write(tmp_path, model, name=f"{name}.safetensors"), write(tmp_path / f"my_{name}-run1", model)):
        backbone = load_backbone(file, num_heads=3)
        with torch.no_grad():
            torch.testing.assert_close(backbone(image).patch_tokens, features(model, image), rtol=1e-5, atol=1e-5)


def test_quick_gelu_is_another_function(tmp_path):
    """So that the tests above could fail: the same weights with the other activation."""
    image = torch.randn(1, 3, 64, 64)
    quick, usual = (features(tiny(f"vit_base_patch16_clip_{n}224"), image) for n in ("quickgelu_", ""))
    assert (quick - usual).abs().max() > 1e-3


def test_registers_of_timm(tmp_path):
    """No position for the class token, nor for registers: "do not fit together" it was."""
    model = tiny("vit_small_patch14_reg4_dinov2", img_size=56)
    assert model.pos_embed.shape[1] == 16
    backbone = load_backbone(write(tmp_path, model), num_heads=3)
    assert backbone.num_prefix_tokens == 5 and backbone.has_cls_token
    assert "read as DINOv2" in backbone.notes


def test_training_checkpoint(tmp_path):
    """timm's `arch` names the model, state_dict_ema is read, and mean and std are those it trained with."""
    model, averaged = tiny("vit_base_patch16_clip_quickgelu_224"), tiny("vit_base_patch16_clip_quickgelu_224")
    torch.nn.init.ones_(averaged.norm.bias)
    content = {"epoch": 3, "arch": "vit_base_patch16_clip_quickgelu_224", "version": 2}
    content |= {"state_dict": model.state_dict(), "state_dict_ema": averaged.state_dict()}
    backbone = load_backbone(save(tmp_path / "last.pth.tar", content), num_heads=3)
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(backbone(image).patch_tokens, features(averaged, image), rtol=1e-5, atol=1e-5)
    assert backbone.mean == (0.48145466, 0.4578275, 0.40821073)
    assert "state_dict_ema of the checkpoint: the averaged network" in "\n".join(backbone.notes)


def test_config_of_another_model_is_refused(tmp_path):
    write(tmp_path, tiny("vit_tiny_patch16_224"), config_of("vit_base_patch16_clip_224"))
    with pytest.raises(UserError, match=r"not the vit_base_patch16_clip_224 that its config.json .*norm_pre"):
        load_backbone(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"depth": 1_000_000}, "argument depth is 1000000"),
        ({"num_heads": 0}, "argument num_heads is 0"),
        ({"checkpoint_path": "x.pth"}, "argument checkpoint_path"),
        ({"pretrained": True}, "argument pretrained"),
        ({"block_fn": "x"}, "argument block_fn"),
    ],
)
def test_crafted_model_args(arguments, message, tmp_path):
    config = config_of("vit_tiny_patch16_224")
    config["model_args"] |= arguments
    write(tmp_path, tiny("vit_tiny_patch16_224"), config)
    with pytest.raises(UserError, match=message):
        load_backbone(tmp_path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("beit_base_patch16_224", "relative position biases"),
        ("deit_tiny_distilled_patch16_224", "dist_token|positions"),
    ],
)
def test_other_families_are_refused(name, message, tmp_path):
    model = tiny(name, img_size=64)
    with pytest.raises(UserError, match=message):
        load_backbone(write(tmp_path, model, name="weights.safetensors"), num_heads=3)


@pytest.mark.parametrize(
    "name",
    [
        "vit_base_patch16_clip_quickgelu_224",
        "vit_base_patch16_rpn_224",
        "vit_medium_patch16_gap_240",
        "vit_small_plus_patch16_dinov3",
        "eva02_tiny_patch14_224",
    ],
)
def test_what_was_read_can_be_exported(name, tmp_path):
    """Plain timm loads it by the line that the export prints."""
    config = config_of(name)
    config["model_args"]["img_size"] = [side(name)] * 2
    write(tmp_path / "model", tiny(name, img_size=side(name)), config)
    backbone = load_backbone(tmp_path / "model")
    line = export_timm(backbone, tmp_path / "backbone.safetensors")
    image = torch.randn(1, 3, side(name), side(name))
    plain = eval(line, {"timm": timm}).eval()
    with torch.no_grad():
        tokens = backbone(image).patch_tokens
        torch.testing.assert_close(features(plain, image), tokens, rtol=1e-5, atol=1e-5)
        assert torch.equal(load_backbone(tmp_path / "backbone.safetensors")(image).patch_tokens, tokens)


def test_wrapped_names(tmp_path):
    """torch.compile, FSDP and activation checkpointing leave their names, also within blocks."""
    model = tiny("vit_tiny_patch16_224")
    state = {n.replace("blocks.0.", "blocks.0._checkpoint_wrapped_module."): t for n, t in model.state_dict().items()}
    state = prefixed("_orig_mod.module.", state)
    backbone = load_backbone(save(tmp_path / "model.pth", state), num_heads=3)
    assert torch.equal(backbone.model.blocks[0].attn.qkv.bias, model.blocks[0].attn.qkv.bias)


def test_approximated_gelu_of_siglip(tmp_path):
    """Weights do not show it: it is assumed not to be one, said, and by name it is read."""
    name = "vit_so400m_patch14_siglip_224"
    model, image = tiny(name, img_size=56), torch.randn(1, 3, 56, 56)
    alone = load_backbone(write(tmp_path, model, name="weights.safetensors"), num_heads=3)
    assert any("GELU is assumed" in note for note in alone.notes)
    named = load_backbone(write(tmp_path, model, name=f"{name}.safetensors"), num_heads=3)
    assert not any("assumed" in note for note in named.notes)
    with torch.no_grad():
        torch.testing.assert_close(named(image).patch_tokens, features(model, image), rtol=1e-5, atol=1e-5)


def test_swin(tmp_path):
    """The first version of Swin is read where its name is known."""
    sizes = {"embed_dim": 24, "depths": [2, 2], "num_heads": [2, 4], "img_size": [64, 64], "window_size": 4}
    torch.manual_seed(0)
    model: Any = timm.create_model("swin_tiny_patch4_window7_224", num_classes=5, **sizes).eval()
    write(tmp_path, model, {"architecture": "swin_tiny_patch4_window7_224", "model_args": sizes})
    backbone, image = load_backbone(tmp_path), torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = model.forward_features(image).flatten(1, 2)
        torch.testing.assert_close(backbone(image).patch_tokens, expected, rtol=1e-5, atol=1e-5)
