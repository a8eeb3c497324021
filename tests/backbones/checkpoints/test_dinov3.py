"""DINOv3 in Meta's, timm's and Hugging Face's names, against tests/reference/plain_dinov3.py."""

import json
import math
import re

import pytest
import torch
from torch import Tensor

from selfpatch.backbones.pretrained import load_backbone
from selfpatch.errors import UserError
from selfpatch.export import export_timm
from tests.backbones.checkpoints.layouts import encoder, prefixed, save, without, zeros
from tests.reference import plain_dinov3

WIDTH, HEADS = 48, 3  # heads of 16 channels, so 4 periods


def meta(*, gated: bool = False, bias: bool = True) -> dict[str, Tensor]:
    tensors = encoder(width=WIDTH, patch=16, layer_scale=("ls1.gamma", "ls2.gamma"), num_registers=2)
    tensors["storage_tokens"] = tensors.pop("register_tokens")
    del tensors["pos_embed"]
    tensors["rope_embed.periods"] = (100 ** (torch.arange(4) / 4)).bfloat16()
    generator = torch.Generator().manual_seed(3)
    for i in range(2):
        mask = torch.ones(3 * WIDTH)
        mask[WIDTH : 2 * WIDTH] = 0
        tensors[f"blocks.{i}.attn.qkv.bias_mask"] = mask
        if not bias:
            del tensors[f"blocks.{i}.attn.qkv.bias"], tensors[f"blocks.{i}.attn.qkv.bias_mask"]
        if gated:
            for name in ("fc1", "fc2"):
                del tensors[f"blocks.{i}.mlp.{name}.weight"], tensors[f"blocks.{i}.mlp.{name}.bias"]
            for name, shape in (("w1", (72, WIDTH)), ("w2", (72, WIDTH)), ("w3", (WIDTH, 72))):
                tensors[f"blocks.{i}.mlp.{name}.weight"] = torch.randn(shape, generator=generator) * 0.2
                tensors[f"blocks.{i}.mlp.{name}.bias"] = torch.randn(shape[:1], generator=generator) * 0.2
    return tensors


def renamed(tensors: dict[str, Tensor], *names: tuple[str, str]) -> dict[str, Tensor]:
    result = {}
    for name, tensor in tensors.items():
        for pattern, replacement in names:
            name = re.sub(pattern, replacement, name)
        result[name] = tensor
    return result


def timm_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    tensors = without(tensors, "bias_mask|rope_embed")
    result = renamed(tensors, ("storage_tokens", "reg_token"), (r"ls([12])\.gamma", r"gamma_\1"), ("w1", "fc1_g"), ("w2", "fc1_x"), ("w3", "fc2"))  # fmt: skip
    for name in [name for name in result if name.endswith("qkv.bias")]:
        query, _, value = result.pop(name).chunk(3)
        result |= {name.replace("qkv.bias", "q_bias"): query, name.replace("qkv.bias", "v_bias"): value}
    return result


def huggingface_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    result = {}
    for name, tensor in without(tensors, "bias_mask|rope_embed").items():
        if ".attn.qkv." in name:
            for letter, part in zip("qkv", tensor.chunk(3), strict=True):
                if (letter, name.split(".")[-1]) != ("k", "bias"):
                    result[name.replace("attn.qkv", f"attention.{letter}_proj")] = part
        else:
            result[name] = tensor
    return renamed(
        result,
        (r"^(cls_token|mask_token)", r"embeddings.\1"), ("storage_tokens", "embeddings.register_tokens"),
        (r"patch_embed\.proj", "embeddings.patch_embeddings"), ("^blocks", "layer"), (r"attn\.proj", "attention.o_proj"),
        (r"ls([12])\.gamma", r"layer_scale\1.lambda1"), (r"mlp\.(w1)\.", "mlp.gate_proj."), (r"mlp\.(w2|fc1)\.", "mlp.up_proj."),
        (r"mlp\.(w3|fc2)\.", "mlp.down_proj."),
    )  # fmt: skip


LAYOUTS = {"Meta": lambda tensors: tensors, "timm": timm_names, "Hugging Face": huggingface_names}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("gated", "bias"), [(False, True), (False, False), (True, True)])
@pytest.mark.parametrize("grid", [(3, 3), (2, 5)])
def test_tokens(layout, gated, bias, grid, tmp_path):
    tensors = meta(gated=gated, bias=bias)
    path = save(tmp_path / "model.pth", LAYOUTS[layout](tensors) | {"mask_token": torch.zeros(1, WIDTH)})
    backbone = load_backbone(path, num_heads=HEADS)
    image = torch.randn(3, 16 * grid[0], 16 * grid[1], generator=torch.Generator().manual_seed(1))
    exact = tensors | {"rope_embed.periods": 100 ** (torch.arange(4) / 4)}
    cls_token, patch_tokens = plain_dinov3.forward(exact, image, HEADS)
    with torch.no_grad():
        tokens = backbone(image[None])
    torch.testing.assert_close(tokens.patch_tokens[0], patch_tokens.float(), rtol=1e-4, atol=2e-5)
    torch.testing.assert_close(tokens.cls_token[0], cls_token.float(), rtol=1e-4, atol=2e-5)
    assert any("DINOv3" in note for note in backbone.notes) and backbone.num_prefix_tokens == 3


def test_heads_follow_from_the_periods(tmp_path):
    assert load_backbone(save(tmp_path / "model.pth", meta())).num_heads == HEADS
    with pytest.raises(UserError, match="3 attention heads, not 4"):
        load_backbone(tmp_path / "model.pth", num_heads=4)


def test_pretraining_state(tmp_path):
    """The teacher; the norm that only local crops went through stays behind."""
    tensors = meta() | {"local_cls_norm.weight": torch.zeros(WIDTH), "local_cls_norm.bias": torch.zeros(WIDTH)}
    content = {"model": prefixed("student.backbone.", zeros(tensors)) | prefixed("teacher.backbone.", tensors)}
    content["model"] |= prefixed("gram_teacher.backbone.", zeros(tensors))
    backbone = load_backbone(save(tmp_path / "model.pth", content))
    assert torch.equal(backbone.model.norm.bias, tensors["norm.bias"])
    assert "model.teacher.backbone of the checkpoint: the averaged network" in "\n".join(backbone.notes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rope_embed.periods": torch.tensor([1.0, 2, 3, 4])}, "periods"),
        ({"rope_embed.periods": torch.zeros(0)}, "periods"),
        ({"cls_norm.weight": torch.ones(WIDTH), "cls_norm.bias": torch.ones(WIDTH)}, "2 unexpected: cls_norm"),
        ({"blocks.0.attn.qkv.bias_mask": None}, "bias for keys"),
        ({"blocks.1.norm2.bias": None}, "1 missing: blocks.1.norm2.bias"),
        ({"norm.bias": torch.full((WIDTH,), math.nan)}, "not finite"),
        ({"patch_embed.proj.weight": torch.zeros(WIDTH, 4, 16, 16)}, "3 channels"),
    ],
)
def test_what_is_no_dinov3(changes, message, tmp_path):
    tensors = {name: tensor for name, tensor in (meta() | changes).items() if tensor is not None}
    with pytest.raises(UserError, match=message):
        load_backbone(save(tmp_path / "model.pth", tensors), num_heads=HEADS)


def test_temperature_of_the_config(tmp_path):
    path = save(tmp_path / "model.pth", huggingface_names(meta()))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "dinov3_vit", "rope_theta": 50}))
    with pytest.raises(UserError, match="rope_theta 50"):
        load_backbone(path, num_heads=HEADS)


def test_it_can_be_exported(tmp_path):
    backbone = load_backbone(save(tmp_path / "model.pth", meta(gated=True)))
    export_timm(backbone, tmp_path / "backbone.safetensors")
    x = torch.randn(1, 3, 32, 48)
    with torch.no_grad():
        assert torch.equal(load_backbone(tmp_path)(x).patch_tokens, backbone(x).patch_tokens)
