"""The contract of a checkpoint format: how one program's file becomes a backbone under timm's names."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from selfpatch.backbones.checkpoints.sidecar import Hints, Normalization
from selfpatch.config import IMAGENET_MEAN, IMAGENET_STD

IMAGENET = Normalization(IMAGENET_MEAN, IMAGENET_STD)
# Attention heads by width: 64 channels per head, but for ViT-H and wider.
NUM_HEADS = {192: 3, 384: 6, 768: 12, 1024: 16, 1280: 16, 1408: 16, 1536: 24}

Names = tuple[tuple[str, str], ...]


class Network(NamedTuple):
    """One network of a file.

    Args:
        prefix: of its names in the file, such as "teacher.module.backbone.".
        tensors: its own, without the prefix.
        file_tensors: all tensors of the file, with their whole names.
    """

    file: Path
    prefix: str
    tensors: dict[str, Tensor]
    file_tensors: dict[str, Tensor]
    hints: Hints = Hints()

    def has(self, *patterns: str) -> bool:
        """True if the whole name of any tensor matches a pattern."""
        return any(re.fullmatch(pattern, name) for pattern in patterns for name in self.tensors)


class Encoder(NamedTuple):
    """A network under timm's names.

    Args:
        num_heads, activation, norm_eps: where the file, or the config.json beside it, states them; None: the usual.
    """

    tensors: dict[str, Tensor]
    num_heads: int | None = None
    activation: str | None = None
    norm_eps: float | None = None
    notes: tuple[str, ...] = ()
    final_norm_from_aggregator: bool = False


class TimmModel(NamedTuple):
    """Arguments of `timm.create_model`, and the tensors for the model that it returns."""

    name: str
    arguments: dict[str, Any]
    tensors: dict[str, Tensor]


Infer = Callable[[Path, Encoder, Mapping[int, int], int | None], TimmModel]


class CheckpointFormat(NamedTuple):
    """The rules by which one program's checkpoints are recognized and read.

    Args:
        name: as shown to the user.
        matches: decides by the names, shapes and values of the tensors.
        read: brings the tensors under timm's names.
        infer: finds timm's architecture.
        pos_embed_interpolation: as in `ViT`: what the program trains and evaluates with.
        num_heads: by width, where they differ from NUM_HEADS.
        normalization: of all models of this program; None: they differ.
    """

    name: str
    matches: Callable[[Network], bool]
    read: Callable[[Network], Encoder]
    infer: Infer
    pos_embed_interpolation: str = "antialias"
    num_heads: Mapping[int, int] = {}
    normalization: Normalization | None = None


def rename(tensors: dict[str, Tensor], names: Names) -> dict[str, Tensor]:
    """Every (pattern, replacement) applied to every whole name, one after the other."""
    renamed = {}
    for name, tensor in tensors.items():
        for pattern, replacement in names:
            name = re.sub(f"^{pattern}$", replacement, name)
        renamed[name] = tensor
    return renamed


def join_qkv(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """`attn.q`, `attn.k`, `attn.v` of every block as one `attn.qkv`; a bias missing beside others is zeros."""
    joined = {}
    for name, tensor in tensors.items():
        part = re.fullmatch(r"(blocks\.\d+\.attn\.)([qkv])\.(weight|bias)", name)
        if part is None:
            joined[name] = tensor
            continue
        attention, _, kind = part.groups()
        parts = [tensors.get(f"{attention}{letter}.{kind}") for letter in "qkv"]
        if kind == "bias":
            parts = [torch.zeros_like(tensor) if p is None else p for p in parts]
        if all(p is not None and p.shape[1:] == tensor.shape[1:] for p in parts):
            joined[f"{attention}qkv.{kind}"] = torch.cat(parts)  # type: ignore[arg-type]
        else:
            joined[name] = tensor  # reported as unexpected, and qkv as missing
    return joined
