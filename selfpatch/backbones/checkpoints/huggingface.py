"""Hugging Face's ViTModel (ViTMAE, I-JEPA too), Dinov2Model and Dinov2WithRegistersModel.

Files that transformers writes keep the names of its fourth version; a state_dict of the fifth has others.
"""

import torch
from torch import Tensor

from selfpatch.backbones.checkpoints.checkpoint_format import (
    IMAGENET,
    CheckpointFormat,
    Encoder,
    Names,
    Network,
    join_qkv,
    rename,
)
from selfpatch.backbones.checkpoints.vit_structure import infer_vit
from selfpatch.errors import UserError

NAMES: Names = (
    (r"embeddings\.(cls_token|mask_token)", r"\1"),
    (r"embeddings\.register_tokens", r"reg_token"),
    (r"embeddings\.position_embeddings", r"pos_embed"),
    (r"embeddings\.distillation_token", r"dist_token"),
    (r"embeddings\.patch_embeddings\.(?:projection\.)?(.*)", r"patch_embed.proj.\1"),
    (r"layernorm\.(.*)", r"norm.\1"),
    (r"(?:model\.)?(?:encoder\.)?layers?\.(\d+)\.(.*)", r"blocks.\1.\2"),
    (r"(blocks\.\d+)\.attention\.(?:attention\.)?(?:query|q_proj)\.(.*)", r"\1.attn.q.\2"),
    (r"(blocks\.\d+)\.attention\.(?:attention\.)?(?:key|k_proj)\.(.*)", r"\1.attn.k.\2"),
    (r"(blocks\.\d+)\.attention\.(?:attention\.)?(?:value|v_proj)\.(.*)", r"\1.attn.v.\2"),
    (r"(blocks\.\d+)\.attention\.(?:output\.dense|o_proj)\.(.*)", r"\1.attn.proj.\2"),
    (r"(blocks\.\d+)\.layernorm_before\.(.*)", r"\1.norm1.\2"),
    (r"(blocks\.\d+)\.layernorm_after\.(.*)", r"\1.norm2.\2"),
    (r"(blocks\.\d+)\.layer_scale([12])\.lambda1", r"\1.ls\2.gamma"),
    (r"(blocks\.\d+)\.(?:intermediate\.dense|mlp\.weights_in)\.(.*)", r"\1.mlp.fc1.\2"),
    (r"(blocks\.\d+)\.(?:output\.dense|mlp\.weights_out|mlp\.down_proj)\.(.*)", r"\1.mlp.fc2.\2"),
)
ACTIVATIONS = {
    "gelu": "gelu", "quick_gelu": "quick_gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh",
    "silu": "silu", "swish": "silu", "relu": "relu",
}  # fmt: skip


def is_huggingface(network: Network) -> bool:
    return "embeddings.patch_embeddings.projection.weight" in network.tensors


def is_huggingface_dinov2(network: Network) -> bool:
    return is_huggingface(network) and network.has(r"encoder\.layer\.\d+\.layer_scale1\.lambda1")


def read_huggingface(network: Network) -> Encoder:
    tensors = join_gates(join_qkv(rename(network.tensors, NAMES)))
    return with_config(network, Encoder(tensors), width=len(tensors["patch_embed.proj.weight"]))


def join_gates(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """SwiGLU in two layers, gate and value, as one; an `up_proj` without gate is a plain first layer."""
    joined = {}
    for name, tensor in tensors.items():
        if ".mlp.gate_proj." in name:
            value = tensors.get(name.replace("gate_proj", "up_proj"))
            if value is not None and value.shape == tensor.shape:
                joined[name.replace("gate_proj", "fc1")] = torch.cat([tensor, value])
        elif ".mlp.up_proj." in name:
            if name.replace("up_proj", "gate_proj") not in tensors:
                joined[name.replace("up_proj", "fc1")] = tensor
        else:
            joined[name] = tensor
    return joined


def with_config(network: Network, encoder: Encoder, *, width: int) -> Encoder:
    """Heads, activation and epsilon from config.json.

    Raises:
        UserError: config.json belongs to another model, or names an activation that timm lacks.
    """
    config = network.hints.config
    if "hidden_size" not in config:
        return encoder
    if config["hidden_size"] != width:
        raise UserError(
            f"{network.file} is {width} wide, and the config.json beside it says hidden_size {config['hidden_size']}; "
            "put the two together that belong together, or move config.json away"
        )
    heads, act, eps = (config.get(key) for key in ("num_attention_heads", "hidden_act", "layer_norm_eps"))
    if act is not None and act not in ACTIVATIONS:
        raise UserError(
            f"config.json beside {network.file} names the activation {act!r}; known are {list(ACTIVATIONS)}"
        )
    is_count, is_eps = type(heads) is int and 0 < heads <= 1024, type(eps) is float and 0 < eps < 1
    return encoder._replace(
        num_heads=heads if is_count else encoder.num_heads,
        activation=encoder.activation if act is None else ACTIVATIONS[act],
        norm_eps=eps if is_eps else encoder.norm_eps,
    )


# Google's ViT was trained with mean and std of 0.5, others of this layout with ImageNet's.
HUGGING_FACE_DINOV2 = CheckpointFormat(
    "Hugging Face's DINOv2", is_huggingface_dinov2, read_huggingface, infer_vit, "offset", normalization=IMAGENET
)
HUGGING_FACE = CheckpointFormat("Hugging Face's ViT", is_huggingface, read_huggingface, infer_vit)
