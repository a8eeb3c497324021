"""timm's VisionTransformer for given tensors: its arguments, from names and shapes alone."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from selfpatch.backbones.checkpoints.checkpoint_format import Encoder, TimmModel
from selfpatch.errors import UserError

PATCH_WEIGHT = "patch_embed.proj.weight"
# The way out where tensors do not decide.
NAME_IT = (
    "put timm's or Hugging Face's config.json beside it, or give the file or its folder timm's name of the model, e.g. "
)
# Found in blocks of other architectures; none of them is a `VisionTransformer` that can be told by its tensors.
FOREIGN = {
    "relative_position_bias": "relative position biases (BEiT)",
    "attns.0": "parallel blocks",
    "in_proj.weight": "parallel blocks",
    "mlp.fc1_g.weight": "a gated feed-forward in two layers (AIMv2)",
    "attn.q_bias": "a bias for queries and values alone (BEiT, EVA)",
    "attn.q_proj.weight": "separate queries, keys and values (EVA)",
    "rope.freqs": "rotary positions",
    "attn.lambda_q1": "differential attention",
}


class UnknownHeadsError(UserError):
    """The number of attention heads is neither in the file nor known of its width."""


def infer_vit(file: Path, encoder: Encoder, heads_of_width: Mapping[int, int], num_heads: int | None) -> TimmModel:
    """
    Args:
        heads_of_width: for a file that does not state its number of attention heads.
        num_heads: what the user says of them.

    Raises:
        UserError: not the structure of a `VisionTransformer`, or one that its tensors leave open.
    """
    tensors = dict(encoder.tensors)
    _refuse_foreign(file, tensors)
    weight, positions = tensors.get(PATCH_WEIGHT, torch.empty(0)), tensors.get("pos_embed")
    if positions is None or weight.ndim != 4 or positions.ndim != 3 or not weight.numel() or not positions.numel():
        raise UserError(
            f"{file} holds no vision transformer of a known layout: {PATCH_WEIGHT} of four axes and pos_embed of three "
            f"are sought; it has {tuple(weight.shape)} and {'none' if positions is None else tuple(positions.shape)}"
        )
    embed_dim, num_channels, *patch_size = weight.shape
    if num_channels != 3:
        raise UserError(f"{file} is made for images of {num_channels} channels; only RGB images, of 3, can be read")
    blocks = {name.split(".")[1] for name in tensors if name.startswith("blocks.")}
    first = {name.removeprefix("blocks.0."): t for name, t in tensors.items() if name.startswith("blocks.0.")}

    # 1. Positions, class token and registers.
    side, tokens = _infer_tokens(file, tensors, embed_dim)

    # 2. The feed-forward, and timm's model that has it.
    fc1, fc2 = first.get("mlp.fc1.weight"), first.get("mlp.fc2.weight")
    is_gated = fc1 is not None and fc2 is not None and fc1.shape[0] == 2 * fc2.shape[-1]
    has_layer_scale, is_pre_norm = "ls1.gamma" in first, "norm_pre.weight" in tensors
    reg = "reg4_" if "reg_tokens" in tokens else ""
    if is_gated:
        name, own_ratio, scaled = f"vit_giant_patch14_{reg}dinov2", 2.66667 * 2, True
    elif is_pre_norm:
        name, own_ratio, scaled = "vit_base_patch16_clip_224", 4.0, False
    elif has_layer_scale:
        name, own_ratio, scaled = f"vit_small_patch14_{reg}dinov2", 4.0, True
    else:
        name, own_ratio, scaled = "vit_small_patch16_224", 4.0, False

    # 3. Everything that differs from that model.
    arguments: dict[str, Any] = {
        "num_classes": 0,
        "global_pool": "",
        "dynamic_img_size": True,
        "img_size": (side * patch_size[0], side * patch_size[1]),
        "patch_size": patch_size[0] if patch_size[0] == patch_size[1] else tuple(patch_size),
        "embed_dim": embed_dim,
        "depth": len(blocks),
        "num_heads": choose_num_heads(file, embed_dim, encoder.num_heads, heads_of_width, num_heads),
        "final_norm": "norm.weight" in tensors,
        **tokens,
    }
    if fc1 is not None and int(embed_dim * own_ratio) != fc1.shape[0]:
        arguments["mlp_ratio"] = (fc1.shape[0] + 0.5) / embed_dim  # timm rounds the width down
    if scaled != has_layer_scale:
        arguments["init_values"] = 1e-5 if has_layer_scale else None
    for argument, sign in (
        ("qk_norm", "attn.q_norm"),
        ("scale_attn_norm", "attn.norm"),
        ("scale_mlp_norm", "mlp.norm"),
    ):
        if f"{sign}.weight" in first:
            arguments[argument] = True
    for argument, bias in (("qkv_bias", "attn.qkv.bias"), ("proj_bias", "attn.proj.bias")):
        if bias.replace("bias", "weight") in first and bias not in first:
            arguments[argument] = False
    _refuse_open(file, first, arguments, has_layer_scale)
    activation = encoder.activation
    if is_pre_norm and activation is None:
        raise UserError(
            f"{file} has the structure of CLIP (norm_pre), which was trained with GELU or with QuickGELU, and weights "
            f"do not show which; {NAME_IT}vit_base_patch16_clip_quickgelu_224.openai or "
            "vit_base_patch16_clip_224.laion2b"
        )
    if not is_gated and activation not in (None, "gelu"):
        arguments["act_layer"] = activation

    # 4. Registers without positions, beside a class token with one: timm adds the latter to the token itself.
    if tokens.get("no_embed_class") and positions.shape[1] == side**2 + 1:
        tensors["cls_token"] = tensors["cls_token"] + positions[:, :1]
        tensors["pos_embed"] = positions[:, 1:]
    return TimmModel(name, arguments, tensors)


def choose_num_heads(
    file: Path, embed_dim: int, stated: int | None, heads_of_width: Mapping[int, int], asked: int | None
) -> int:
    """
    Raises:
        UserError: an unusual width of which nobody says it, or the user says another number than the file.
    """
    if stated is not None and asked not in (None, stated):
        raise UserError(f"{file} has {stated} attention heads, not {asked}; use that number")
    found = asked or stated or heads_of_width.get(embed_dim)
    if found is None:
        usual = ", ".join(f"{n} for {width}" for width, n in heads_of_width.items())
        raise UnknownHeadsError(
            f"{file} is {embed_dim} wide, and how many attention heads that makes cannot be seen in a file; say it "
            f"with --num-heads, for a run with --backbone.num-heads (usual are {usual})"
        )
    return found


def _infer_tokens(file: Path, tensors: dict[str, Tensor], embed_dim: int) -> tuple[int, dict[str, Any]]:
    """The side of the square grid of positions; arguments for class token and registers."""
    num_positions = tensors["pos_embed"].shape[1]
    cls_token, registers = tensors.get("cls_token"), tensors.get("reg_token")
    shapes = [(name, tensors[name].shape) for name in ("cls_token", "reg_token", "pos_embed") if name in tensors]
    if any(len(shape) != 3 or shape[0] != 1 or shape[2] != embed_dim for _, shape in shapes) or (
        cls_token is not None and cls_token.shape[1] != 1
    ):
        described = ", ".join(f"{name} {tuple(shape)}" for name, shape in shapes)
        raise UserError(
            f"{file} is {embed_dim} wide, and its registers, class token and positions are {described}; they do not "
            "fit together: one class token, and all of that width, are needed"
        )
    num_registers = 0 if registers is None else registers.shape[1]
    arguments: dict[str, Any] = {"class_token": cls_token is not None}
    if num_registers:
        arguments["reg_tokens"] = num_registers
    # Tokens besides patches that have a position; none is the usual with registers, the class token's else.
    with_position = [0, int(cls_token is not None), num_registers + int(cls_token is not None)]
    for num_prefix in dict.fromkeys(with_position if num_registers else reversed(with_position)):
        side = math.isqrt(max(num_positions - num_prefix, 0))
        if side and side**2 + num_prefix == num_positions:
            is_plain = num_prefix == num_registers + int(cls_token is not None)
            if num_registers or not is_plain:
                arguments["no_embed_class"] = not is_plain
            return side, arguments
    raise UserError(
        f"{file} has {num_positions} positions, {'one' if cls_token is not None else 'no'} class token and "
        f"{num_registers} registers; only square grids of positions can be read, with or without one for each of these"
    )


def _refuse_foreign(file: Path, tensors: dict[str, Tensor]) -> None:
    for sign, meaning in FOREIGN.items():
        for name in tensors:
            if name.startswith(("blocks.0.", "rel_pos_bias.", "rope.")) and (f".{sign}" in name or name.endswith(sign)):
                raise UserError(
                    f"{file} has {meaning} ({name}), which no plain vision transformer has; {NAME_IT}"
                    "eva02_small_patch14_224, if timm's VisionTransformer or Eva has it, or choose another checkpoint"
                )


def _refuse_open(file: Path, first: dict[str, Tensor], arguments: dict[str, Any], has_layer_scale: bool) -> None:
    """Structures that leave the same tensors and compute something else."""
    if arguments.get("qkv_bias") is False and not has_layer_scale and not arguments["class_token"]:
        raise UserError(
            f"{file} has blocks without qkv bias, layer scale and class token: their norms may stand before attention "
            f"and feed-forward, or after them, and weights do not show which; {NAME_IT}vit_base_patch16_rpn_224"
        )
    if "norm1.weight" in first and "norm1.bias" not in first:
        raise UserError(
            f"{file} has norms without bias, which are RMS norms of an epsilon that weights do not show; {NAME_IT}"
            "aimv2_large_patch14_224"
        )
