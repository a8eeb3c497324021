"""A folder that transformers' AutoModel loads: ViT, DINOv2 (with registers) or DINOv3 where the network is one of them.

Everything else goes through timm's wrapper, TimmWrapperModel, in a folder that timm loads as well.
"""

import json
import re
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import timm
import torch
from safetensors.torch import save_file
from timm.layers import RotaryEmbeddingDinoV3
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from selfpatch.backbones.backbone import Backbone
from selfpatch.backbones.checkpoints.checkpoint_format import Names, rename
from selfpatch.backbones.pos_embed import OffsetPosEmbedViT, split_positions
from selfpatch.backbones.pretrained import load_backbone
from selfpatch.errors import UserError
from selfpatch.export.structure import activation, common_norm_eps, problem_of_square_layouts
from selfpatch.export.timm_file import timm_arguments
from selfpatch.output.atomic_files import atomic_write

WEIGHTS, CONFIG, PREPROCESSOR = "model.safetensors", "config.json", "preprocessor_config.json"

# timm's names as transformers writes them to files: the tables of backbones/checkpoints (huggingface.py, dinov3.py) the
# other way round. Those read several spellings and cannot be run backwards; tests hold the two to each other.
EMBEDDINGS: Names = (
    (r"(cls_token|mask_token)", r"embeddings.\1"),
    (r"reg_token", r"embeddings.register_tokens"),
    (r"pos_embed", r"embeddings.position_embeddings"),
)
ENCODER: Names = (
    *EMBEDDINGS,
    (r"patch_embed\.proj\.(.*)", r"embeddings.patch_embeddings.projection.\1"),
    (r"norm\.(.*)", r"layernorm.\1"),
    (r"blocks\.(.*)", r"encoder.layer.\1"),
    (r"(.*)\.attn\.(query|key|value)\.(.*)", r"\1.attention.attention.\2.\3"),
    (r"(.*)\.attn\.proj\.(.*)", r"\1.attention.output.dense.\2"),
)
VIT_NAMES: Names = (
    *ENCODER,
    (r"(.*)\.norm1\.(.*)", r"\1.layernorm_before.\2"),
    (r"(.*)\.norm2\.(.*)", r"\1.layernorm_after.\2"),
    (r"(.*)\.mlp\.fc1\.(.*)", r"\1.intermediate.dense.\2"),
    (r"(.*)\.mlp\.fc2\.(.*)", r"\1.output.dense.\2"),
)
DINOV2_NAMES: Names = (*ENCODER, (r"(.*)\.ls([12])\.gamma", r"\1.layer_scale\2.lambda1"))
GATED_NAMES: Names = (
    (r"(.*)\.mlp\.fc1\.(.*)", r"\1.mlp.weights_in.\2"),
    (r"(.*)\.mlp\.fc2\.(.*)", r"\1.mlp.weights_out.\2"),
)
DINOV3_NAMES: Names = (
    *EMBEDDINGS,
    (r"patch_embed\.proj\.(.*)", r"embeddings.patch_embeddings.\1"),
    (r"blocks\.(.*)", r"layer.\1"),
    (r"(.*)\.attn\.(q|k|v)(?:uery|ey|alue)\.(.*)", r"\1.attention.\2_proj.\3"),
    (r"(.*)\.attn\.proj\.(.*)", r"\1.attention.o_proj.\2"),
    (r"(.*)\.gamma_([12])", r"\1.layer_scale\2.lambda1"),
    (r"(.*)\.mlp\.fc1_g\.(.*)", r"\1.mlp.gate_proj.\2"),
    (r"(.*)\.mlp\.(?:fc1_x|fc1)\.(.*)", r"\1.mlp.up_proj.\2"),
    (r"(.*)\.mlp\.fc2\.(.*)", r"\1.mlp.down_proj.\2"),
)
# Tensors of the blocks that these layouts have; with another one a network is none of them.
KNOWN = (
    r"cls_token|reg_token|mask_token|pos_embed|(patch_embed\.proj|norm)\..*|"
    r"blocks\.\d+\.(norm[12]|ls[12]|gamma_[12]|attn\.(qkv|proj|q_bias|v_bias)|mlp\.(fc1|fc1_g|fc1_x|fc2))(\..*)?"
)


class Layout(NamedTuple):
    """A model of transformers: its config.json, and its tensors under its own names."""

    config: dict[str, Any]
    tensors: dict[str, Tensor]


def export_huggingface(backbone: Backbone, folder: Path) -> str:
    """Write `folder` and return the line that loads it, after `from transformers import AutoModel`.

    Raises:
        UserError: neither a layout of transformers nor timm's wrapper gives these tokens.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder, prefix=".writing-") as temporary:
        layout = own_layout(backbone)
        if layout is not None:
            _write(layout, backbone, Path(temporary))
        # What its own reader makes of it decides: a difference that no name shows is none of the layout.
        if layout is None or not _reads_as(backbone, Path(temporary)):
            _write(timm_layout(backbone), backbone, Path(temporary))
        for file in (WEIGHTS, PREPROCESSOR, CONFIG):
            with atomic_write(folder / file) as place:
                shutil.copyfile(Path(temporary) / file, place)
    return f"AutoModel.from_pretrained({str(folder)!r})"


def own_layout(backbone: Backbone) -> Layout | None:
    """The network as one of transformers' own; None: it is none of them."""
    model = backbone.model
    tensors = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items() if name != "rope.periods"}
    is_known = all(re.fullmatch(KNOWN, name) for name in tensors)
    if not is_known or problem_of_square_layouts(backbone) or activation(model) is None:
        return None
    if type(model) in (VisionTransformer, OffsetPosEmbedViT) and model.pos_embed is not None:
        return _vit_layout(backbone, tensors)
    if isinstance(model, Eva) and isinstance(model.rope, RotaryEmbeddingDinoV3) and model.pos_embed is None:
        return _dinov3_layout(backbone, tensors)
    return None


def timm_layout(backbone: Backbone) -> Layout:
    """
    Raises:
        UserError: timm's own network of this name and these arguments gives other tokens.
    """
    name, arguments = timm_arguments(backbone)
    if arguments.get("num_classes"):
        raise UserError(
            f"position was removed from this {name} by a linear map behind its final norm, which no model of "
            "transformers has; choose another format: timm, onnx or torch-export"
        )
    arguments = {key: value for key, value in arguments.items() if key != "num_classes"}
    tensors = {name: tensor.detach().cpu() for name, tensor in backbone.model.state_dict().items()}
    model: Any = timm.create_model(name, num_classes=0, **arguments).eval()  # timm's attributes have no types
    model.load_state_dict(tensors)
    images = _example(backbone)
    with torch.no_grad():
        patch_tokens = model.forward_features(images).flatten(1, -2)[:, getattr(model, "num_prefix_tokens", 0) :]
    if not _is_close(patch_tokens, backbone, images):
        raise UserError(
            f"transformers has no layout for this {name}, and timm's wrapper cannot express it: plain timm builds it "
            "with another epsilon of its norms or other attention heads; choose another format: onnx or torch-export"
        )
    height, width = backbone.image_size
    config = {
        "model_type": "timm_wrapper",
        "architectures": ["TimmWrapperModel"],
        "do_pooling": False,
        "architecture": name,
        "num_classes": 0,
        "num_features": backbone.embed_dim,
        "global_pool": arguments.get("global_pool", ""),
        "model_args": arguments,
        "pretrained_cfg": {
            "num_classes": 0,
            "input_size": [backbone.num_channels, height, width],
            "interpolation": "bicubic",
            "crop_pct": 1.0,
            "mean": backbone.mean,
            "std": backbone.std,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        },
    }
    return Layout(config, tensors)


def _vit_layout(backbone: Backbone, tensors: dict[str, Tensor]) -> Layout | None:
    model = backbone.model
    width, num_blocks = backbone.embed_dim, len(model.blocks)
    fc1, fc2 = tensors["blocks.0.mlp.fc1.weight"], tensors["blocks.0.mlp.fc2.weight"]
    is_gated, has_scale = len(fc1) == 2 * fc2.shape[1], "blocks.0.ls1.gamma" in tensors
    registers = tensors.get("reg_token")
    config = _shared_config(backbone) | {"qkv_bias": "blocks.0.attn.qkv.bias" in tensors}

    # 1. Positions: of the class token and the patches, none of registers.
    prefix, patches = (part.detach().cpu() for part in split_positions(model))
    if registers is not None and prefix.shape[1] > 1:
        tensors["reg_token"] = registers + prefix[:, 1:]
    own = prefix[:, :1] if prefix.shape[1] else torch.zeros_like(patches[:, :1])
    tensors["pos_embed"] = torch.cat([own, patches], dim=1)
    tensors = _split_qkv(tensors)

    # 2. Plain: ViT.
    if registers is None and not has_scale and not is_gated:
        config |= {"model_type": "vit", "architectures": ["ViTModel"], "intermediate_size": len(fc1)}
        return Layout(config, rename(tensors, VIT_NAMES))

    # 3. With layer scale, registers or a gate: DINOv2. Layer scale that is missing is 1.
    ratio = _ratio(width, fc2.shape[1], is_gated=is_gated)
    if ratio is None or "blocks.0.mlp.fc1.bias" not in tensors:
        return None
    for block in range(0 if has_scale else num_blocks):
        tensors |= {f"blocks.{block}.ls{i}.gamma": torch.ones(width) for i in (1, 2)}
    tensors["mask_token"] = torch.zeros(1, width)
    config |= {"model_type": "dinov2", "architectures": ["Dinov2Model"], "mlp_ratio": ratio, "use_swiglu_ffn": is_gated}
    if registers is not None:
        config |= {"model_type": "dinov2_with_registers", "architectures": ["Dinov2WithRegistersModel"]}
        config["num_register_tokens"] = registers.shape[1]
    return Layout(config, rename(tensors, (*DINOV2_NAMES, *(GATED_NAMES if is_gated else ()))))


def _ratio(width: int, hidden: int, *, is_gated: bool) -> int | None:
    """transformers' `mlp_ratio`, a whole number; a gated feed-forward is 2/3 as wide, rounded up to a multiple of 8."""
    for ratio in range(1, 17):
        expected = (int(width * ratio * 2 / 3) + 7) // 8 * 8 if is_gated else width * ratio
        if expected == hidden:
            return ratio
    return None


def _dinov3_layout(backbone: Backbone, tensors: dict[str, Tensor]) -> Layout | None:
    model = backbone.model
    rope, width = model.rope, backbone.embed_dim
    is_usual = rope.temperature == 100 and rope.normalize_coords == "separate" and rope.grid_offset == 0
    if not is_usual or not rope.rotate_half:
        return None
    has_bias = "blocks.0.attn.q_bias" in tensors
    hidden, fc1 = tensors["blocks.0.mlp.fc2.weight"].shape[1], tensors.get("blocks.0.mlp.fc1.weight")
    for block in range(len(model.blocks)):
        for part in ("weight", "bias"):
            if fc1 is not None and len(fc1) == 2 * hidden:  # gate and value in one layer
                packed = tensors.pop(f"blocks.{block}.mlp.fc1.{part}")
                gate, value = packed.chunk(2)
                tensors |= {f"blocks.{block}.mlp.fc1_g.{part}": gate, f"blocks.{block}.mlp.fc1_x.{part}": value}
        for gamma in (f"blocks.{block}.gamma_1", f"blocks.{block}.gamma_2"):
            tensors.setdefault(gamma, torch.ones(width))
    tensors["mask_token"] = torch.zeros(1, 1, width)
    tensors.setdefault("reg_token", torch.zeros(1, 0, width))
    config = _shared_config(backbone) | {
        "model_type": "dinov3_vit",
        "architectures": ["DINOv3ViTModel"],
        "intermediate_size": hidden,
        "use_gated_mlp": "blocks.0.mlp.fc1_g.weight" in tensors,
        "num_register_tokens": tensors["reg_token"].shape[1],
        "query_bias": has_bias,
        "key_bias": False,
        "value_bias": has_bias,
        "rope_theta": 100.0,
    }
    return Layout(config, rename(_split_qkv(tensors), DINOV3_NAMES))


def _split_qkv(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    split: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        attention, _, part = name.rpartition(".attn.")
        if part in ("qkv.weight", "qkv.bias"):
            kind = part.removeprefix("qkv.")
            names = [f"{attention}.attn.{word}.{kind}" for word in ("query", "key", "value")]
            split |= dict(zip(names, tensor.chunk(3), strict=True))
        elif part in ("q_bias", "v_bias"):
            split[f"{attention}.attn.{ {'q_bias': 'query', 'v_bias': 'value'}[part] }.bias"] = tensor
        else:
            split[name] = tensor
    return split


def _shared_config(backbone: Backbone) -> dict[str, Any]:
    return {
        "hidden_size": backbone.embed_dim,
        "num_hidden_layers": len(backbone.model.blocks),
        "num_attention_heads": backbone.num_heads,
        "hidden_act": activation(backbone.model),
        "layer_norm_eps": common_norm_eps(backbone.model),
        "image_size": backbone.image_size[0],
        "patch_size": backbone.patch_size[0],
        "num_channels": backbone.num_channels,
    }


def _write(layout: Layout, backbone: Backbone, folder: Path) -> None:
    save_file({name: t.contiguous() for name, t in layout.tensors.items()}, folder / WEIGHTS, metadata={"format": "pt"})
    height, width = backbone.image_size
    is_wrapper = layout.config["model_type"] == "timm_wrapper"
    preprocessor = {
        "image_processor_type": "TimmWrapperImageProcessor" if is_wrapper else "BitImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": min(height, width)},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": {"height": height, "width": width},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": backbone.mean,
        "image_std": backbone.std,
    }
    for file, content in ((CONFIG, layout.config), (PREPROCESSOR, preprocessor)):
        (folder / file).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _reads_as(backbone: Backbone, folder: Path) -> bool:
    images = _example(backbone)
    with torch.no_grad():
        return _is_close(load_backbone(folder)(images).patch_tokens, backbone, images)


def _example(backbone: Backbone) -> Tensor:
    return torch.randn(1, backbone.num_channels, *backbone.image_size, generator=torch.Generator().manual_seed(0))


def _is_close(patch_tokens: Tensor, backbone: Backbone, images: Tensor) -> bool:
    with torch.no_grad():
        expected = backbone(images.to(next(backbone.parameters()).device)).patch_tokens.cpu()
    return patch_tokens.shape == expected.shape and bool(torch.allclose(patch_tokens, expected, rtol=1e-5, atol=1e-5))
