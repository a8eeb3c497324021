"""Stochastic depth as it is written: every branch of every sample is computed, then multiplied by 0 or 1 / (share kept)."""

import torch
from torch import Tensor, nn


class PlainDropPath(nn.Module):
    """In the place of timm's DropPath; draws as the fast form does, so that equal seeds drop equal samples."""

    def __init__(self, drop_prob: float):
        super().__init__()
        self.plain_drop_prob = drop_prob

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        keep = (torch.rand(len(x)) >= self.plain_drop_prob).float() / (1 - self.plain_drop_prob)
        return x * keep.view(-1, *[1] * (x.ndim - 1))


def make_plain(blocks: nn.Module) -> None:
    """Give blocks back to timm's own forward."""
    for block in blocks:
        block.__class__ = type(block).__mro__[2]
        # Parts of parallel blocks have one each.
        for part in list(block.modules()):
            for name, child in list(part.named_children()):
                if name.startswith("drop_path") and (drop_prob := getattr(child, "drop_prob", 0)):
                    setattr(part, name, PlainDropPath(drop_prob))
