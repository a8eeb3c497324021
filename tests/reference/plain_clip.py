"""CLIP's image encoder by OpenAI's names: one image, head by head."""

import torch
from torch import Tensor

from tests.reference.plain_huggingface import ACTIVATIONS, attend


def forward_clip(t: dict[str, Tensor], image: Tensor, num_heads: int, activation: str) -> Tensor:
    """All tokens [T, D] of an image through ln_post, which CLIP itself applies to the first alone."""
    x = torch.nn.functional.conv2d(image[None], t["conv1.weight"], stride=t["conv1.weight"].shape[-1])[0].flatten(1).T
    x = torch.cat([t["class_embedding"][None], x]) + t["positional_embedding"]
    x = norm(x, t, "ln_pre")
    for i in range(2):
        b = {n.removeprefix(f"transformer.resblocks.{i}."): v for n, v in t.items() if n.startswith(f"transformer.resblocks.{i}.")}  # fmt: skip
        qkv = norm(x, b, "ln_1") @ b["attn.in_proj_weight"].T + b["attn.in_proj_bias"]
        x = x + linear(attend(*qkv.chunk(3, dim=-1), num_heads), b, "attn.out_proj")
        x = x + linear(ACTIVATIONS[activation](linear(norm(x, b, "ln_2"), b, "mlp.c_fc")), b, "mlp.c_proj")
    return norm(x, t, "ln_post")


def clip_tensors(width: int = 24, patch: int = 8, grid: int = 3) -> dict[str, Tensor]:
    shapes: dict[str, tuple[int, ...]] = {
        "class_embedding": (width,),
        "positional_embedding": (1 + grid**2, width),
        "conv1.weight": (width, 3, patch, patch),
        "proj": (width, 16),
    }
    blocks: dict[str, tuple[int, ...]] = {"attn.in_proj_weight": (3 * width, width), "attn.in_proj_bias": (3 * width,)}
    for name, to, of in (
        ("attn.out_proj", width, width),
        ("mlp.c_fc", 4 * width, width),
        ("mlp.c_proj", width, 4 * width),
    ):
        blocks |= {f"{name}.weight": (to, of), f"{name}.bias": (to,)}
    blocks |= {f"{name}.{kind}": (width,) for name in ("ln_1", "ln_2") for kind in ("weight", "bias")}
    shapes |= {f"{name}.{kind}": (width,) for name in ("ln_pre", "ln_post") for kind in ("weight", "bias")}
    shapes |= {f"transformer.resblocks.{i}.{name}": shape for i in range(2) for name, shape in blocks.items()}
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator) * 0.3 for name, shape in shapes.items()}


def norm(x: Tensor, t: dict[str, Tensor], name: str) -> Tensor:
    centered = x - x.mean(dim=-1, keepdim=True)
    scale = (centered.square().mean(dim=-1, keepdim=True) + 1e-5).sqrt()
    return centered / scale * t[f"{name}.weight"] + t[f"{name}.bias"]


def linear(x: Tensor, t: dict[str, Tensor], name: str) -> Tensor:
    return x @ t[f"{name}.weight"].T + t[f"{name}.bias"]
