"""Folders that transformers and timm load themselves, and that come back as the same tokens."""

import json

import pytest
import timm
import torch
from torch import nn

from selfpatch.backbones.position_removal import append_projection
from selfpatch.backbones.pretrained import load_backbone
from selfpatch.errors import UserError
from selfpatch.export.huggingface import export_huggingface
from tests.backbones.small_swin import small_swin
from tests.backbones.small_vits import FAMILIES, small_vit

transformers = pytest.importorskip("transformers")

MODEL_TYPES = {"class token": "vit", "registers": "dinov2_with_registers", "RoPE and registers": "dinov3_vit"}


def dinov2():
    return small_vit("class token", name="vit_small_patch14_dinov2", patch_size=None)


def gated_dinov2():
    """A feed-forward as wide as transformers makes it: 24 x 4 x 2 / 3 = 64."""
    backbone = small_vit("class token", name="vit_giant_patch14_dinov2", patch_size=None)
    width = len(backbone.model.blocks[0].mlp.fc1.weight)
    assert width == 2 * 64, width
    return backbone


def gated_dinov3():
    return small_vit("RoPE and registers", name="vit_huge_plus_patch16_dinov3")


def without_qkv_bias():
    return small_vit("RoPE and registers", name="vit_small_patch16_dinov3_qkvb")


def with_set_heads():
    backbone = small_vit("class token")
    backbone.set_num_heads(6)
    return backbone


MODELS = {
    family: (lambda family=family: small_vit(family), MODEL_TYPES.get(family, "timm_wrapper")) for family in FAMILIES
}
MODELS |= {
    "Swin": (small_swin, "timm_wrapper"),
    "DINOv2": (dinov2, "dinov2"),
    "gated DINOv2": (gated_dinov2, "dinov2"),
    "gated DINOv3": (gated_dinov3, "dinov3_vit"),
    "another bias": (without_qkv_bias, "dinov3_vit"),
    "other heads": (with_set_heads, "vit"),
    "not square": (lambda: oblong(), "timm_wrapper"),
}


def oblong():
    backbone = small_vit("class token")
    backbone.set_image_size((24, 40))
    backbone.architecture.arguments["img_size"] = (24, 40)
    return backbone


def load(folder):
    model, report = transformers.AutoModel.from_pretrained(folder, output_loading_info=True, local_files_only=True)
    assert {name.split(".")[0] for name in report["missing_keys"]} <= {"pooler"}  # of ViT, which no pretraining has
    assert not report["unexpected_keys"] and not report["mismatched_keys"]
    return model.eval()


@pytest.mark.filterwarnings("ignore")  # transformers' own, while it loads
@pytest.mark.parametrize("name", MODELS)
def test_transformers_and_this_package_give_the_same_tokens(name, tmp_path):
    build, model_type = MODELS[name]
    backbone = build()
    backbone.mean, backbone.std = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    line = export_huggingface(backbone, tmp_path)
    assert line == f"AutoModel.from_pretrained({str(tmp_path)!r})"
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["model_type"] == model_type
    images = torch.randn(2, 3, *backbone.image_size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = backbone(images)
        tokens = load(tmp_path)(pixel_values=images).last_hidden_state.flatten(1, -2)
        again = load_backbone(tmp_path)
        read = again(images)
    count = expected.patch_tokens.shape[1]
    torch.testing.assert_close(tokens[:, -count:], expected.patch_tokens, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(read.patch_tokens, expected.patch_tokens, rtol=1e-5, atol=1e-5)
    if expected.cls_token is not None:
        torch.testing.assert_close(tokens[:, 0], expected.cls_token, rtol=1e-5, atol=1e-5)
    assert (again.mean, again.std) == (backbone.mean, backbone.std)
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "config.json", "model.safetensors", "preprocessor_config.json",
    ]  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["class token", "registers", "RoPE and registers", "no class token", "Swin"])
def test_the_processor_normalizes_as_the_run_did(name, tmp_path):
    backbone = MODELS[name][0]()
    backbone.mean, backbone.std = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    export_huggingface(backbone, tmp_path)
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path, local_files_only=True)
    gray = torch.full((3, *backbone.image_size), 128, dtype=torch.uint8).permute(1, 2, 0).numpy()
    from PIL import Image

    pixels = processor(Image.fromarray(gray), return_tensors="pt")["pixel_values"]
    assert pixels.shape == (1, 3, *backbone.image_size)
    expected = [(128 / 255 - mean) / std for mean, std in zip(backbone.mean, backbone.std, strict=True)]
    torch.testing.assert_close(pixels[0, :, 0, 0], torch.tensor(expected), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["no class token", "Swin"])
def test_timm_loads_the_folder_of_its_wrapper(name, tmp_path):
    backbone = MODELS[name][0]()
    export_huggingface(backbone, tmp_path)
    model = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    images = torch.randn(1, 3, *backbone.image_size)
    with torch.no_grad():
        torch.testing.assert_close(
            model.forward_features(images).flatten(1, -2), backbone(images).patch_tokens, rtol=1e-5, atol=1e-5
        )


def test_a_map_behind_the_final_norm_is_refused(tmp_path):
    backbone = small_vit("class token")
    append_projection(backbone, torch.eye(24))
    with pytest.raises(UserError, match="position was removed"):
        export_huggingface(backbone, tmp_path / "model")


def test_what_neither_can_express_is_refused(tmp_path):
    """No class token, so none of transformers' own; and norms that plain timm does not build."""
    backbone = small_vit("no class token")
    for module in backbone.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = 1e-2
    with pytest.raises(UserError, match="another epsilon"):
        export_huggingface(backbone, tmp_path / "model")
    assert not list((tmp_path / "model").iterdir())
