"""Checkpoints of the programs that others published, told apart by their tensors and brought under timm's names.

SelfPatch, DINO, iBOT, MoCo-v3 and DINOv2 train the same transformer. They differ in where it is in the file, in some
names, in the number of heads, which leaves no trace in shapes, and in how position embeddings follow the image size.
"""

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from selfpatch.errors import UserError

# Every one of them has this tensor, and what stands before it is where the backbone is.
PATCH_WEIGHT = "patch_embed.proj.weight"
# Of several networks in a file the first counts: the teacher is what DINO, SelfPatch, iBOT and DINOv2 evaluate, and the
# base encoder, not its momentum copy, what MoCo-v3 does.
NETWORKS = ("teacher", "student", "base_encoder", "momentum_encoder")

# Heads by width: 64 channels a head, but for ViT-H.
NUM_HEADS = {192: 3, 384: 6, 768: 12, 1024: 16, 1280: 16, 1536: 24}


class Origin(NamedTuple):
    """How one program's checkpoints are read.

    Args:
        matches: told by where the backbone is in the file, and by its tensors.
        names: (their pattern, timm's) of the tensors that are called otherwise.
        pos_embed_interpolation: as in `ViT`, what it was trained and evaluated with.
        num_heads: where it has others than NUM_HEADS, by width.
    """

    name: str
    matches: Callable[[str, dict[str, Tensor]], bool]
    names: tuple[tuple[str, str], ...] = ()
    pos_embed_interpolation: str = "dino"
    num_heads: dict[int, int] = {}  # noqa: RUF012


def has_fixed_positions(tensors: dict[str, Tensor]) -> bool:
    """Sines and cosines as MoCo-v3 has them: zeros for the class token, then 0, 1, 0, 1 in quarters for the corner."""
    positions = tensors.get("pos_embed")
    if positions is None or positions.ndim != 3 or positions.shape[1] < 2 or positions.shape[2] % 4:
        return False
    corner = torch.tensor([0.0, 1.0, 0.0, 1.0]).repeat_interleave(positions.shape[2] // 4)
    return bool((positions[0, 0] == 0).all() and (positions[0, 1].float() == corner).all())


def has(*pattern: str) -> Callable[[str, dict[str, Tensor]], bool]:
    return lambda place, tensors: any(re.match(p, name) for p in pattern for name in tensors)


# The first that fits counts; what none knows is DINO's (and SelfPatch's, which lacks a class token).
FORMATS = (
    Origin(
        "MoCo-v3",
        lambda place, tensors: "base_encoder" in place or "momentum_encoder" in place or has_fixed_positions(tensors),
        # It knows one image size; timm, which it is built on, resamples when others load it.
        pos_embed_interpolation="timm",
        num_heads={384: 12},  # moco-v3 vits.py
    ),
    Origin(
        "DINOv2",
        has(r"mask_token", r"register_tokens", r"blocks\.\d+\.\d+\.", r"blocks\.\d+\.ls1\."),
        (
            (r"blocks\.\d+\.(\d+)\.(.*)", r"blocks.\1.\2"),  # blocks in chunks, numbered through
            (r"(.*)\.mlp\.w12\.(.*)", r"\1.mlp.fc1.\2"),  # SwiGLU: gate and value in one layer
            (r"(.*)\.mlp\.w3\.(.*)", r"\1.mlp.fc2.\2"),
            (r"register_tokens", r"reg_token"),
        ),
    ),
    Origin(
        "iBOT",
        has(r"masked_embed", r"blocks\.\d+\.gamma_1"),
        ((r"(.*)\.gamma_([12])", r"\1.ls\2.gamma"),),
    ),
    Origin("DINO", lambda place, tensors: True),
)


class Original(NamedTuple):
    """What a checkpoint holds, in timm's terms.

    Args:
        name, arguments: what `timm.create_model` needs.
        tensors: of the backbone, and whatever else is beside them in the file.
    """

    name: str
    arguments: dict[str, Any]
    tensors: dict[str, Tensor]
    pos_embed_interpolation: str
    notes: tuple[str, ...]
    final_norm_from_aggregator: bool


def convert_original(file: Path, tensors: dict[str, Tensor], num_heads: int | None) -> Original:
    """
    Args:
        tensors: all of the file, by dotted names.
        num_heads: None: known from the width.

    Raises:
        UserError: no vision transformer of these layouts, or an unusual width without `num_heads`.
    """
    # 1. Where it is, and whose.
    place = find_backbone(file, tensors)
    backbone = {name.removeprefix(place): t for name, t in tensors.items() if name.startswith(place)}
    origin = next(origin for origin in FORMATS if origin.matches(place, backbone))
    notes = [f"{place.removesuffix('.')} of the checkpoint"] if place else []
    if origin.name != "DINO":
        notes.append(f"read as {origin.name}")

    # 2. Names.
    backbone = {timm_name(name, origin.names): tensor for name, tensor in backbone.items()}
    # SelfPatch leaves the final norm to its aggregator, which stands beside the backbone.
    beside = place.removesuffix("backbone.")
    final_norm_from_aggregator = False
    for name in ("weight", "bias"):
        tensor = tensors.get(f"{beside}ca_head.norm.{name}")
        if tensor is not None and f"norm.{name}" not in backbone:
            backbone[f"norm.{name}"] = tensor
            final_norm_from_aggregator = True
    if final_norm_from_aggregator:
        notes.append("the aggregator's norm (ca_head.norm) is its final norm")
    if "norm.weight" not in backbone:
        notes.append("no final norm in the file: patch tokens come without one")

    # 3. The architecture.
    name, arguments = infer_architecture(file, backbone, NUM_HEADS | origin.num_heads, num_heads)
    pos_embed_interpolation = origin.pos_embed_interpolation
    if "reg_tokens" in arguments:
        # Registers have no position, and timm keeps none for the class token either: it is part of the token.
        backbone["cls_token"] = backbone["cls_token"] + backbone["pos_embed"][:, :1]
        backbone["pos_embed"] = backbone["pos_embed"][:, 1:]
        # Bicubic and antialiased to the size itself, as timm does (DINOv2's hub sets interpolate_antialias for these).
        pos_embed_interpolation = "timm"
    return Original(name, arguments, backbone, pos_embed_interpolation, tuple(notes), final_norm_from_aggregator)


def find_backbone(file: Path, tensors: dict[str, Tensor]) -> str:
    """What stands before the names of the backbone's tensors, such as "teacher.module.backbone."; "" if nothing."""
    places = [name.removesuffix(PATCH_WEIGHT) for name in tensors if f".{name}".endswith(f".{PATCH_WEIGHT}")]
    if not places:
        raise UserError(
            f"{file} holds no vision transformer of a known layout (SelfPatch, DINO, iBOT, MoCo-v3, DINOv2): "
            f"{PATCH_WEIGHT} is sought; it has {', '.join(list(tensors)[:5]) or 'no tensors'}"
        )

    def rank(place: str) -> tuple[int, int]:
        parts = place.split(".")
        return next((i for i, network in enumerate(NETWORKS) if network in parts), len(NETWORKS)), len(parts)

    return min(places, key=rank)


def timm_name(name: str, names: tuple[tuple[str, str], ...]) -> str:
    for pattern, replacement in names:
        name = re.sub(f"^{pattern}$", replacement, name)
    return name


def infer_architecture(
    file: Path, tensors: dict[str, Tensor], heads_of_width: dict[int, int], num_heads: int | None
) -> tuple[str, dict[str, Any]]:
    """timm's name and what differs from it, from the names and shapes of the tensors."""
    weight, positions = tensors[PATCH_WEIGHT], tensors.get("pos_embed")
    if positions is None or weight.ndim != 4 or positions.ndim != 3 or not weight.numel() or not positions.numel():
        raise UserError(
            f"{file} holds no vision transformer of a known layout: {PATCH_WEIGHT} of four axes and pos_embed of three "
            f"are sought; it has {tuple(weight.shape)} and {'none' if positions is None else tuple(positions.shape)}"
        )
    embed_dim, num_channels, *patch_size = weight.shape
    num_positions = positions.shape[1]
    class_token = math.isqrt(num_positions) ** 2 != num_positions
    side = math.isqrt(num_positions - class_token)
    if num_channels != 3 or side**2 + class_token != num_positions:
        raise UserError(
            f"{file} has {num_channels} channels and {num_positions} positions; only colour images, and square grids "
            "of positions with one or no class token, can be read"
        )
    num_heads = num_heads or heads_of_width.get(embed_dim)
    if num_heads is None:
        raise UserError(
            f"{file} is {embed_dim} wide, and how many attention heads that makes cannot be seen in a file; say it "
            f"with num-heads (usual are {', '.join(f'{n} for {width}' for width, n in heads_of_width.items())})"
        )
    arguments = {
        "num_classes": 0,
        "global_pool": "",
        "dynamic_img_size": True,
        "img_size": (side * patch_size[0], side * patch_size[1]),
        "patch_size": patch_size[0] if patch_size[0] == patch_size[1] else tuple(patch_size),
        "embed_dim": embed_dim,
        "depth": len({name.split(".")[1] for name in tensors if name.startswith("blocks.")}),
        "num_heads": num_heads,
        "class_token": class_token,
        "final_norm": "norm.weight" in tensors,
    }
    # Layer scale, registers and SwiGLU come with timm's names for DINOv2.
    if (registers := tensors.get("reg_token")) is not None:
        cls_token = tensors.get("cls_token", torch.empty(0))
        fits = cls_token.shape == (1, 1, embed_dim) and class_token and positions.shape[::2] == (1, embed_dim)
        if registers.ndim != 3 or not fits:
            raise UserError(
                f"{file} is {embed_dim} wide, and its registers, class token and positions are "
                f"{', '.join(str(tuple(t.shape)) for t in (registers, cls_token, positions))}; they do not fit together"
            )
        arguments["reg_tokens"] = registers.shape[1]
    if not any(name.endswith(".ls1.gamma") for name in tensors):
        return "vit_small_patch16_224", arguments
    feed_forward, width = tensors.get("blocks.0.mlp.fc1.weight"), tensors.get("blocks.0.mlp.fc2.weight")
    is_gated = feed_forward is not None and width is not None and feed_forward.shape[0] == 2 * width.shape[-1]
    size, reg = "giant" if is_gated else "small", "reg4_" if "reg_tokens" in arguments else ""
    return f"vit_{size}_patch14_{reg}dinov2", arguments
