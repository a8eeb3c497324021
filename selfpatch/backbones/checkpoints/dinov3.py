"""DINOv3: rotary positions, in Meta's names, timm's (Eva) and Hugging Face's; all become timm's.

Queries and values may have a bias, keys have none: Meta keeps one for all three, and masks the part of the keys.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from selfpatch.backbones.checkpoints.checkpoint_format import (
    IMAGENET,
    CheckpointFormat,
    Encoder,
    Names,
    Network,
    TimmModel,
    join_qkv,
    rename,
)
from selfpatch.backbones.checkpoints.huggingface import NAMES as HUGGING_FACE_NAMES
from selfpatch.backbones.checkpoints.huggingface import join_gates, with_config
from selfpatch.backbones.checkpoints.vit_structure import PATCH_WEIGHT, choose_num_heads
from selfpatch.errors import UserError

META_NAMES: Names = (
    (r"storage_tokens", r"reg_token"),
    (r"(blocks\.\d+)\.ls([12])\.gamma", r"\1.gamma_\2"),
    (r"(blocks\.\d+)\.mlp\.w1\.(.*)", r"\1.mlp.fc1_g.\2"),
    (r"(blocks\.\d+)\.mlp\.w2\.(.*)", r"\1.mlp.fc1_x.\2"),
    (r"(blocks\.\d+)\.mlp\.w3\.(.*)", r"\1.mlp.fc2.\2"),
)
# From the fourth axis of our names for Hugging Face's DINOv2 to timm's Eva.
EVA_NAMES: Names = ((r"(blocks\.\d+)\.ls([12])\.gamma", r"\1.gamma_\2"),)
TEMPERATURE = 100
# Only ViT-H+ and 7B have other heads than 64 channels at a width of 16 heads.
NUM_HEADS = {1280: 20, 4096: 32}


def is_meta(network: Network) -> bool:
    return network.has(r"rope_embed\.periods", r"storage_tokens")


def is_timm(network: Network) -> bool:
    return (
        {"cls_token", "reg_token", "blocks.0.gamma_1", "blocks.0.attn.qkv.weight"} <= network.tensors.keys()
        and "pos_embed" not in network.tensors
        and "rope.freqs" not in network.tensors
    )


def is_huggingface(network: Network) -> bool:
    return "embeddings.patch_embeddings.weight" in network.tensors and network.has(r"(model\.)?layer\.\d+\..*")


def read_meta(network: Network) -> Encoder:
    """
    Raises:
        UserError: keys with a bias, or rotary positions of other periods than timm's.
    """
    tensors = rename(network.tensors, META_NAMES)
    periods = tensors.pop("rope_embed.periods", None)
    num_heads = None
    if periods is not None:
        num_heads = _check_periods(network.file, periods, len(tensors[PATCH_WEIGHT]))
    read: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if name.startswith("local_cls_norm."):  # for the class token of local crops in training
            continue
        if not name.endswith(("attn.qkv.bias", "attn.qkv.bias_mask")):
            read[name] = tensor
        elif name.endswith(".bias"):
            mask = tensors.get(f"{name}_mask")
            # A network that was never initialized has a mask of NaN; its three parts are known: 1, 0, 1.
            masked = tensor if mask is None or bool(mask.isnan().any()) else tensor * mask
            query, key, value = masked.chunk(3)
            if mask is None and bool(key.any()):
                raise UserError(
                    f"{network.file} has a bias for keys in {name}, which DINOv3 has not; it cannot be read"
                )
            read[name.replace("qkv.bias", "q_bias")], read[name.replace("qkv.bias", "v_bias")] = query, value
    return Encoder(read, num_heads=num_heads)


def read_timm(network: Network) -> Encoder:
    return Encoder({name: tensor for name, tensor in network.tensors.items() if name != "rope.periods"})


def read_huggingface(network: Network) -> Encoder:
    """
    Raises:
        UserError: as `read_meta`, of a temperature in config.json or a bias of keys.
    """
    theta = network.hints.config.get("rope_theta", TEMPERATURE)
    if theta != TEMPERATURE:
        raise UserError(f"config.json beside {network.file} has rope_theta {theta}; DINOv3 has {TEMPERATURE}")
    tensors = rename(network.tensors, HUGGING_FACE_NAMES)
    tensors = rename(join_qkv(join_gates(tensors)), EVA_NAMES)
    read: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if not name.endswith("attn.qkv.bias"):
            read[name] = tensor
            continue
        query, key, value = tensor.chunk(3)
        if bool(key.any()):
            raise UserError(f"{network.file} has a bias for keys in {name}, which DINOv3 has not; it cannot be read")
        read[name.replace("qkv.bias", "q_bias")], read[name.replace("qkv.bias", "v_bias")] = query, value
    return with_config(network, Encoder(read), width=len(read[PATCH_WEIGHT]))


def infer_dinov3(file: Path, encoder: Encoder, heads_of_width: Mapping[int, int], num_heads: int | None) -> TimmModel:
    """
    Raises:
        UserError: not RGB, or an unusual width of which nobody says the number of heads.
    """
    tensors = encoder.tensors
    weight = tensors[PATCH_WEIGHT]
    if weight.ndim != 4 or not weight.numel() or weight.shape[1] != 3:
        raise UserError(f"{file} has patches of {tuple(weight.shape)}; only RGB images, of 3 channels, can be read")
    embed_dim, _, *patch_size = weight.shape
    registers = tensors.get("reg_token", torch.empty(1, 0, embed_dim))
    fc1 = next((tensors[n] for n in ("blocks.0.mlp.fc1_g.weight", "blocks.0.mlp.fc1.weight") if n in tensors), None)
    fc2 = tensors.get("blocks.0.mlp.fc2.weight")
    has_two_layers = "blocks.0.mlp.fc1_g.weight" in tensors
    is_gated = has_two_layers or (fc1 is not None and fc2 is not None and fc1.shape[0] == 2 * fc2.shape[-1])
    has_bias = "blocks.0.attn.q_bias" in tensors
    arguments: dict[str, Any] = {
        "num_classes": 0,
        "global_pool": "",
        "dynamic_img_size": True,
        "patch_size": patch_size[0] if patch_size[0] == patch_size[1] else tuple(patch_size),
        "embed_dim": embed_dim,
        "depth": len({name.split(".")[1] for name in tensors if name.startswith("blocks.")}),
        "num_heads": choose_num_heads(file, embed_dim, encoder.num_heads, heads_of_width, num_heads),
        "num_reg_tokens": registers.shape[1],
        "qkv_bias": has_bias,
    }
    if fc2 is not None and fc2.ndim == 2:
        arguments["mlp_ratio"] = (fc2.shape[1] + 0.5) / embed_dim  # timm rounds the width down
    if is_gated:
        arguments |= {"swiglu_mlp": True, "swiglu_align_to": 1 if has_two_layers else 0}
    return TimmModel("vit_small_patch16_dinov3", arguments, tensors)


def _check_periods(file: Path, periods: Tensor, embed_dim: int) -> int:
    """The number of heads that the periods belong to: a period for every four channels of a head."""
    expected = TEMPERATURE ** (torch.arange(len(periods)) / len(periods))
    # They are often kept in bfloat16.
    if periods.ndim != 1 or not len(periods) or not torch.allclose(periods.float(), expected, rtol=1e-2):
        raise UserError(f"{file} has rotary positions of other periods than DINOv3's 1 to {TEMPERATURE}")
    return embed_dim // (4 * len(periods))


META_DINOV3 = CheckpointFormat("DINOv3", is_meta, read_meta, infer_dinov3, num_heads=NUM_HEADS, normalization=IMAGENET)
TIMM_DINOV3 = CheckpointFormat(
    "timm's DINOv3", is_timm, read_timm, infer_dinov3, num_heads=NUM_HEADS, normalization=IMAGENET
)
HUGGING_FACE_DINOV3 = CheckpointFormat(
    "Hugging Face's DINOv3", is_huggingface, read_huggingface, infer_dinov3, num_heads=NUM_HEADS, normalization=IMAGENET
)
