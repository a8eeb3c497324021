"""Hugging Face's layouts, against modules of our own that have its names: tests/reference/plain_huggingface.py."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from selfpatch.backbones.pretrained import load_backbone
from selfpatch.errors import UserError
from tests.backbones.checkpoints.layouts import prefixed, save
from tests.reference.plain_huggingface import PlainCLIP, PlainViT

HALF = (0.5, 0.5, 0.5)
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
VIT = {"model_type": "vit", "hidden_size": 24, "num_attention_heads": 3, "hidden_act": "gelu", "layer_norm_eps": 1e-12}
DINOV2 = VIT | {"model_type": "dinov2", "layer_norm_eps": 1e-6}
CLIP = VIT | {"model_type": "clip_vision_model", "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5}
SIGLIP = VIT | {"model_type": "siglip_vision_model", "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6}
MODELS: dict[str, tuple[Any, dict[str, Any], int]] = {  # the module, its config.json, tokens before the patches
    "ViTModel": (lambda: PlainViT(kind="vit", eps=1e-12), VIT, 1),
    "ViTModel, another epsilon": (lambda: PlainViT(kind="vit", eps=1e-2), VIT | {"layer_norm_eps": 1e-2}, 1),
    "Dinov2Model": (lambda: PlainViT(kind="dinov2"), DINOV2, 1),
    "Dinov2Model, SwiGLU": (lambda: PlainViT(kind="dinov2", gated=True), DINOV2, 1),
    "Dinov2WithRegistersModel": (lambda: PlainViT(kind="dinov2", num_registers=4), DINOV2, 5),
    "CLIPVisionModel": (PlainCLIP, CLIP, 1),
    "CLIPVisionModel, GELU": (lambda: PlainCLIP(activation="gelu"), CLIP | {"hidden_act": "gelu"}, 1),
    "SiglipVisionModel": (lambda: PlainCLIP(siglip=True, activation="gelu_pytorch_tanh", eps=1e-6), SIGLIP, 0),
}


def write(
    folder: Path, model: nn.Module, config: dict[str, Any] | None, *, prefix: str = "", binary: bool = False
) -> Path:
    folder.mkdir(exist_ok=True)
    tensors = prefixed(prefix, model.state_dict())
    file = folder / ("pytorch_model.bin" if binary else "model.safetensors")
    if binary:
        torch.save(tensors, file)
    else:
        save_file(tensors, file, metadata={"format": "pt"})
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return file


def compare(backbone: Any, model: nn.Module, num_prefix: int) -> None:
    image = torch.randn(3, 24, 24, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        tokens, expected = backbone(image[None]), model(image)
    torch.testing.assert_close(tokens.patch_tokens[0], expected[num_prefix:], rtol=1e-5, atol=1e-5)
    if num_prefix:
        torch.testing.assert_close(tokens.cls_token[0], expected[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("prefix", "binary"), [("", False), ("dinov2.", True), ("vit.", False)])
def test_folder(name, prefix, binary, tmp_path):
    """Without a config.yaml it was "no run"."""
    create, config, num_prefix = MODELS[name]
    model = create()
    write(tmp_path / "model", model, config, prefix=prefix, binary=binary)
    compare(load_backbone(tmp_path / "model"), model, num_prefix)


@pytest.mark.parametrize(
    "name", ["Dinov2Model", "Dinov2Model, SwiGLU", "Dinov2WithRegistersModel", "SiglipVisionModel"]
)
def test_file_alone(name, tmp_path):
    create, _, num_prefix = MODELS[name]
    model = create()
    backbone = load_backbone(write(tmp_path, model, None), num_heads=3)
    assert all("assumed" not in note for note in backbone.notes)
    if name == "SiglipVisionModel":
        assert backbone.mean == HALF
    else:
        compare(backbone, model, num_prefix)


def test_clip_alone_leaves_its_activation_open(tmp_path):
    file = write(tmp_path, PlainCLIP(), None)
    with pytest.raises(UserError, match="GELU or with QuickGELU.*config.json"):
        load_backbone(file, num_heads=3)


def test_names_of_the_fifth_version(tmp_path):
    """As a `state_dict` has them; what it saves has those of the fourth."""
    model = PlainViT(kind="vit", eps=1e-12)
    names = (
        ("encoder.layer.", "layers."), ("attention.attention.query", "attention.q_proj"),
        ("attention.attention.key", "attention.k_proj"), ("attention.attention.value", "attention.v_proj"),
        ("attention.output.dense", "attention.o_proj"), ("intermediate.dense", "mlp.fc1"), ("output.dense", "mlp.fc2"),
    )  # fmt: skip
    state = {}
    for name, tensor in model.state_dict().items():
        for old, new in names:
            name = name.replace(old, new)
        state[name] = tensor
    (tmp_path / "config.json").write_text(json.dumps(VIT))
    compare(load_backbone(save(tmp_path / "model.pth", state)), model, 1)


def test_swiglu_of_the_fifth_version(tmp_path):
    """Gate and value in two layers, of which the first half of `weights_in` is the gate."""
    model = PlainViT(kind="dinov2", gated=True)
    state = {}
    for name, tensor in model.state_dict().items():
        if ".weights_in." in name:
            gate, value = tensor.chunk(2)
            state |= {name.replace("weights_in", "gate_proj"): gate, name.replace("weights_in", "up_proj"): value}
        else:
            state[name.replace("weights_out", "down_proj")] = tensor
    compare(load_backbone(save(tmp_path / "model.pth", state), num_heads=3), model, 1)


def test_shards(tmp_path):
    model = PlainViT(kind="dinov2")
    tensors = model.state_dict()
    parts = [dict(list(tensors.items())[i::2]) for i in range(2)]
    for i, part in enumerate(parts):
        save_file(part, tmp_path / f"model-{i}.safetensors")
    index = {"weight_map": {name: f"model-{i}.safetensors" for i, part in enumerate(parts) for name in part}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    (tmp_path / "config.json").write_text(json.dumps(DINOV2))
    compare(load_backbone(tmp_path), model, 1)
    (tmp_path / "model-1.safetensors").unlink()
    with pytest.raises(UserError, match="model-1.safetensors is not there"):
        load_backbone(tmp_path)
    index["weight_map"]["layernorm.bias"] = "../model-0.safetensors"
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match="no index of files of weights beside it"):
        load_backbone(tmp_path)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (VIT | {"hidden_size": 768}, "24 wide, .*hidden_size 768"),
        (VIT | {"hidden_act": "mish"}, "activation 'mish'"),
        (VIT | {"num_attention_heads": 4}, "4 attention heads, not 3"),
    ],
)
def test_config_that_does_not_fit(config, message, tmp_path):
    write(tmp_path, PlainViT(kind="vit"), config)
    with pytest.raises(UserError, match=message):
        load_backbone(tmp_path, num_heads=3)


def test_folder_without_weights(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(VIT))
    with pytest.raises(UserError, match="has a config.json and no weights beside it; model.safetensors"):
        load_backbone(tmp_path)


def test_other_structures_are_refused(tmp_path):
    """BEiT's and DeiT's own tensors, in Hugging Face's names."""
    state = PlainViT(kind="vit").state_dict()
    for name in ("embeddings.distillation_token", "encoder.layer.0.lambda_1",
                 "encoder.layer.0.attention.attention.relative_position_bias.relative_position_bias_table"):  # fmt: skip
        with pytest.raises(UserError, match="unexpected|relative position biases"):
            load_backbone(save(tmp_path / "model.pth", state | {name: torch.zeros(1, 1, 24)}), num_heads=3)


def test_cache_of_hugging_face(tmp_path):
    folder = tmp_path / "models--facebook--dinov2-small"
    (folder / "snapshots").mkdir(parents=True)
    model = PlainViT(kind="dinov2")
    write(folder / "snapshots" / "0123abc", model, DINOV2)
    compare(load_backbone(folder), model, 1)


def test_preprocessor_says_how_images_are_normalized(tmp_path):
    write(tmp_path, PlainViT(kind="vit"), VIT)
    assert "ImageNet's mean and std are assumed" in "\n".join(load_backbone(tmp_path).notes)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_mean": HALF, "image_std": [0.25, 0.5, 0.5]}))
    backbone = load_backbone(tmp_path)
    assert (backbone.mean, backbone.std) == (HALF, (0.25, 0.5, 0.5))
    assert "(preprocessor_config.json)" in "\n".join(backbone.notes)


def test_whole_clip_model(tmp_path):
    """Vision and text together: config.json has a part for each."""
    model = PlainCLIP()
    state = prefixed("vision_model.", model.state_dict())
    state |= {"text_model.embeddings.token_embedding.weight": torch.zeros(5, 8), "logit_scale": torch.zeros(())}
    config = {"model_type": "clip", "vision_config": CLIP, "text_config": {"hidden_size": 8}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    preprocessor = {"image_mean": CLIP_MEAN, "image_std": [0.26862954, 0.26130258, 0.27577711]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    backbone = load_backbone(save(tmp_path / "pytorch_model.bin", state))
    compare(backbone, model, 1)
    assert backbone.mean == CLIP_MEAN
