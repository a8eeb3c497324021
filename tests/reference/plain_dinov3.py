"""DINOv3's vision transformer by the names of Meta's tensors: one image, one head at a time, in double precision.

Source of the rotary positions: DINOv3, sec. 3.2 and its released code: coordinates of patch centers in [-1, 1] by row and
by column, a period for every fourth of a head, angle 2 pi coordinate / period, halves of a head rotated against each other.
"""

import math

import torch
from torch import Tensor

from tests.reference.plain_vit import feed_forward


def forward(tensors: dict[str, Tensor], image: Tensor, num_heads: int) -> tuple[Tensor, Tensor]:
    """The class token [D] and the patch tokens [N, D] of an image [3, H, W], after the norm."""
    t = {name: tensor.double() for name, tensor in tensors.items()}
    weight = t["patch_embed.proj.weight"]
    side = weight.shape[-1]
    rows, columns = image.shape[1] // side, image.shape[2] // side
    patches = []
    for r in range(rows):
        for s in range(columns):
            pixels = image.double()[:, r * side : (r + 1) * side, s * side : (s + 1) * side]
            patches.append((weight * pixels).sum(dim=(1, 2, 3)) + t["patch_embed.proj.bias"])
    x = torch.stack([t["cls_token"][0, 0], *t["storage_tokens"][0], *patches])
    num_prefix = 1 + len(t["storage_tokens"][0])
    angles = angles_of_patches(rows, columns, t["rope_embed.periods"])  # [N, head / 2]

    for i in range(len({name.split(".")[1] for name in t if name.startswith("blocks.")})):
        b = {name.removeprefix(f"blocks.{i}."): tensor for name, tensor in t.items() if name.startswith(f"blocks.{i}.")}
        y = norm(x, b["norm1.weight"], b["norm1.bias"])
        bias = b["attn.qkv.bias"] * b["attn.qkv.bias_mask"] if "attn.qkv.bias" in b else 0
        queries, keys, values = (y @ b["attn.qkv.weight"].T + bias).chunk(3, dim=-1)
        heads = []
        for q, k, v in zip(*(z.chunk(num_heads, -1) for z in (queries, keys, values)), strict=True):
            q, k = rotate(q, angles, num_prefix), rotate(k, angles, num_prefix)
            heads.append((q @ k.T / math.sqrt(q.shape[-1])).softmax(dim=-1) @ v)
        y = torch.cat(heads, dim=-1) @ b["attn.proj.weight"].T + b["attn.proj.bias"]
        x = x + b["ls1.gamma"] * y
        y = norm(x, b["norm2.weight"], b["norm2.bias"])
        if "mlp.w1.weight" in b:
            gate, value = (y @ b[f"mlp.{name}.weight"].T + b[f"mlp.{name}.bias"] for name in ("w1", "w2"))
            y = (gate / (1 + (-gate).exp()) * value) @ b["mlp.w3.weight"].T + b["mlp.w3.bias"]
        else:
            y = feed_forward(y, b)
        x = x + b["ls2.gamma"] * y
    x = norm(x, t["norm.weight"], t["norm.bias"])
    return x[0], x[num_prefix:]


def angles_of_patches(rows: int, columns: int, periods: Tensor) -> Tensor:
    angles = []
    for r in range(rows):
        for s in range(columns):
            row, column = 2 * (r + 0.5) / rows - 1, 2 * (s + 0.5) / columns - 1
            angles.append(2 * math.pi * torch.cat([row / periods, column / periods]))
    return torch.stack(angles)


def rotate(x: Tensor, angles: Tensor, num_prefix: int) -> Tensor:
    """Tokens [T, head]; those before the patches have no position."""
    first, second = x[num_prefix:].chunk(2, dim=-1)
    turned = [first * angles.cos() - second * angles.sin(), second * angles.cos() + first * angles.sin()]
    return torch.cat([x[:num_prefix], torch.cat(turned, dim=-1)])


def norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    centered = x - x.mean(dim=-1, keepdim=True)
    return centered / (centered.square().mean(dim=-1, keepdim=True) + 1e-5).sqrt() * weight + bias
