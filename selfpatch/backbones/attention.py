"""The attention of timm's blocks, whatever a family calls its parts: modules, keys, and weights of the class token."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


def find_attentions(block: nn.Module) -> list[Any]:
    """Attention modules of a block: one, or several that run in parallel. It may be the block itself."""
    return [module for module in block.modules() if hasattr(module, "num_heads")]


def attention_keys(attention: Any, x: Float[Tensor, "*places D"]) -> Float[Tensor, "*places K"]:
    """Keys of all heads side by side, before any norm or rotation, from the input of the attention module."""
    if hasattr(attention, "in_proj"):  # a block whose one projection is for queries, keys, values and the MLP
        x = attention.in_norm(x)
        weights, biases = attention.in_proj.weight.split(attention.in_split), attention.in_proj.bias
        return F.linear(x, weights[2], None if biases is None else biases.split(attention.in_split)[2])
    if attention.qkv is None:
        return F.linear(x, attention.k_proj.weight, attention.k_proj.bias)
    bias = attention.qkv.bias
    return F.linear(x, attention.qkv.weight.chunk(3)[1], None if bias is None else bias.chunk(3)[1])


def use_plain_attention(block: nn.Module) -> None:
    """Attention weights as a tensor of their own instead of a fused kernel: the same, up to rounding."""
    for attention in find_attentions(block):
        attention.fused_attn = False


@contextmanager
def recorded_attention(attentions: list[Any]) -> Iterator[list[Float[Tensor, "B h T T"]]]:
    """The list that gets the attention weights of each module that runs inside. They come with fused kernels off."""
    weights: list[Tensor] = []
    fused = [attention.fused_attn for attention in attentions]
    hooks = [
        attention.attn_drop.register_forward_pre_hook(lambda _, inputs: weights.append(inputs[0]))
        for attention in attentions
    ]
    try:
        for attention in attentions:
            attention.fused_attn = False  # a fused kernel never writes its weights down
        yield weights
    finally:
        for attention, hook, was_fused in zip(attentions, hooks, fused, strict=True):
            attention.fused_attn = was_fused
            hook.remove()
