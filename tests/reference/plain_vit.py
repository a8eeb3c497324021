"""A vision transformer by the names of the original programs' tensors, one image, one head, one patch at a time."""

import math
from collections.abc import Callable

import torch
from torch import Tensor


def forward(
    tensors: dict[str, Tensor],
    image: Tensor,
    num_heads: int,
    resample: Callable[[Tensor, tuple[int, int]], Tensor],
) -> tuple[Tensor, Tensor]:
    """The class token [D] and the patch tokens [N, D] of an image [3, H, W], in double precision, after the norm.

    Args:
        tensors: `blocks.N.*` unchunked; with `register_tokens`, `ls1.gamma` (or iBOT's `gamma_1`) and SwiGLU (`mlp.w12`)
            where the network has them.
        resample: what brings positions [R, S, D] to another grid; of the own grid it is not asked.
    """
    t = {name: tensor.double() for name, tensor in tensors.items()}
    weight, bias = t["patch_embed.proj.weight"], t["patch_embed.proj.bias"]
    side = weight.shape[-1]
    rows, columns = image.shape[1] // side, image.shape[2] // side

    # 1. Patches, row by row.
    patches = []
    for r in range(rows):
        for s in range(columns):
            pixels = image.double()[:, r * side : (r + 1) * side, s * side : (s + 1) * side]
            patches.append((weight * pixels).sum(dim=(1, 2, 3)) + bias)

    # 2. Positions for the class token and the patches; registers have none.
    positions = t["pos_embed"][0]
    grid = math.isqrt(len(positions) - 1)
    of_patches = positions[1:].unflatten(0, (grid, grid))
    if (rows, columns) != (grid, grid):
        of_patches = resample(of_patches, (rows, columns))
    tokens = [t["cls_token"][0, 0] + positions[0]]
    tokens += list(t["register_tokens"][0]) if "register_tokens" in t else []
    num_prefix = len(tokens)
    tokens += [patch + position for patch, position in zip(patches, of_patches.flatten(0, 1), strict=True)]
    x = torch.stack(tokens)

    # 3. Blocks.
    for i in range(len({name.split(".")[1] for name in t if name.startswith("blocks.")})):
        b = {name.removeprefix(f"blocks.{i}."): tensor for name, tensor in t.items() if name.startswith(f"blocks.{i}.")}
        scale1 = b.get("ls1.gamma", b.get("gamma_1", torch.ones(1)))
        scale2 = b.get("ls2.gamma", b.get("gamma_2", torch.ones(1)))
        x = x + scale1 * attention(norm(x, b["norm1.weight"], b["norm1.bias"]), b, num_heads)
        x = x + scale2 * feed_forward(norm(x, b["norm2.weight"], b["norm2.bias"]), b)
    x = norm(x, t["norm.weight"], t["norm.bias"])
    return x[0], x[num_prefix:]


def norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    centered = x - x.mean(dim=-1, keepdim=True)
    return centered / (centered.square().mean(dim=-1, keepdim=True) + 1e-6).sqrt() * weight + bias


def attention(x: Tensor, b: dict[str, Tensor], num_heads: int) -> Tensor:
    queries, keys, values = (x @ b["attn.qkv.weight"].T + b["attn.qkv.bias"]).chunk(3, dim=-1)
    heads = []
    for q, k, v in zip(
        queries.chunk(num_heads, -1), keys.chunk(num_heads, -1), values.chunk(num_heads, -1), strict=True
    ):
        heads.append((q @ k.T / math.sqrt(q.shape[-1])).softmax(dim=-1) @ v)
    return torch.cat(heads, dim=-1) @ b["attn.proj.weight"].T + b["attn.proj.bias"]


def feed_forward(x: Tensor, b: dict[str, Tensor]) -> Tensor:
    if "mlp.w12.weight" in b:
        gate, value = (x @ b["mlp.w12.weight"].T + b["mlp.w12.bias"]).chunk(2, dim=-1)
        return (gate / (1 + (-gate).exp()) * value) @ b["mlp.w3.weight"].T + b["mlp.w3.bias"]
    hidden = x @ b["mlp.fc1.weight"].T + b["mlp.fc1.bias"]
    hidden = hidden * (1 + torch.erf(hidden / math.sqrt(2))) / 2
    return hidden @ b["mlp.fc2.weight"].T + b["mlp.fc2.bias"]
