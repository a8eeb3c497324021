"""Tensors of tiny encoders under the names of the original programs, for checkpoints made in their layouts."""

import math
import re
from pathlib import Path

import torch
from torch import Tensor


def encoder(
    *,
    width: int = 24,
    depth: int = 2,
    patch: int = 8,
    grid: int = 3,
    layer_scale: tuple[str, str] | None = None,
    num_registers: int = 0,
    gated: bool = False,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Random tensors of a backbone, blocks unchunked."""
    shapes = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, 1 + grid**2, width),
        "patch_embed.proj.weight": (width, 3, patch, patch),
        "patch_embed.proj.bias": (width,),
        "norm.weight": (width,),
        "norm.bias": (width,),
    }
    if num_registers:
        shapes["register_tokens"] = (1, num_registers, width)
    for i in range(depth):
        block: dict[str, tuple[int, ...]] = {"attn.qkv.weight": (3 * width, width), "attn.qkv.bias": (3 * width,)}
        block |= {"attn.proj.weight": (width, width), "attn.proj.bias": (width,)}
        block |= {f"{name}.{kind}": (width,) for name in ("norm1", "norm2") for kind in ("weight", "bias")}
        block |= dict.fromkeys(layer_scale or (), (width,))
        first, second = ("mlp.w12", "mlp.w3") if gated else ("mlp.fc1", "mlp.fc2")
        hidden = width * 8 // 3 if gated else 4 * width
        block |= {f"{first}.weight": ((1 + gated) * hidden, width), f"{first}.bias": ((1 + gated) * hidden,)}
        block |= {f"{second}.weight": (width, hidden), f"{second}.bias": (width,)}
        shapes |= {f"blocks.{i}.{name}": shape for name, shape in block.items()}
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(shape, generator=generator) * (0.3 / math.sqrt(max(1, width / 24)))
        for name, shape in shapes.items()
    }


def prefixed(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in tensors.items()}


def zeros(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Of a network that is not the one to take."""
    return {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}


def chunked(tensors: dict[str, Tensor], size: int) -> dict[str, Tensor]:
    """blocks.N to blocks.CHUNK.N, as DINOv2 names them when it trains."""
    return {
        re.sub(r"^blocks\.(\d+)", lambda m: f"blocks.{int(m[1]) // size}.{m[1]}", name): t
        for name, t in tensors.items()
    }


def with_fixed_positions(tensors: dict[str, Tensor], order: str = "row first") -> dict[str, Tensor]:
    """Zeros for the class token; sines and cosines of the row, then of the column (MoCo-v3), or the other way (MAE)."""
    _, num_positions, width = tensors["pos_embed"].shape
    has_class = "cls_token" in tensors
    grid = math.isqrt(num_positions - has_class)
    positions = torch.zeros(1, num_positions, width)
    for r in range(grid):
        for s in range(grid):
            first, second = (r, s) if order == "row first" else (s, r)
            for k in range(width // 4):
                frequency = 10_000 ** (-k / (width // 4))
                angles = (
                    math.sin(first * frequency),
                    math.cos(first * frequency),
                    math.sin(second * frequency),
                    math.cos(second * frequency),
                )
                positions[0, has_class + r * grid + s, k :: width // 4] = torch.tensor(angles)
    return tensors | {"pos_embed": positions}


def without(tensors: dict[str, Tensor], pattern: str) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if not re.search(pattern, name)}


def save(path: Path, content: object) -> Path:
    torch.save(content, path)
    return path
