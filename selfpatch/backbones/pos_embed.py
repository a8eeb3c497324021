"""DINO's interpolation of learned position embeddings, beside timm's."""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor


class OffsetPosEmbedViT(VisionTransformer):
    """timm's vision transformer with DINO's interpolation of position embeddings; nothing else differs.

    An instance of VisionTransformer becomes one, and back, by assigning its class.
    """

    def _pos_embed(self, x: Float[Tensor, "B R S D"]) -> Float[Tensor, "B T D"]:
        prefix = [token.expand(x.shape[0], -1, -1) for token in (self.cls_token, self.reg_token) if token is not None]
        prefix_positions, patch_positions = split_positions(self)
        grid_size = (x.shape[1], x.shape[2])
        x = x.flatten(1, 2) + resample_with_offset(patch_positions, self.patch_embed.grid_size, grid_size)
        if prefix:
            prefix_tokens = torch.cat(prefix, dim=1)
            if prefix_positions.shape[1]:
                prefix_tokens = prefix_tokens + prefix_positions
            x = torch.cat([prefix_tokens, x], dim=1)
        return self.pos_drop(x)


def split_positions(model: Any) -> tuple[Float[Tensor, "1 T D"], Float[Tensor, "1 N D"]]:
    """Position embeddings of the class token and registers, if they have any, and of the patches."""
    num_prefix = 0 if model.no_embed_class else model.num_prefix_tokens
    return model.pos_embed.tensor_split([num_prefix], dim=1)


def resample_with_offset(
    positions: Float[Tensor, "1 N D"], old_grid: tuple[int, int], new_grid: tuple[int, int]
) -> Float[Tensor, "1 N2 D"]:
    """Bicubic, not antialiased, with sampling points scaled by (new + 0.1) / old.

    Source: DINO's interpolate_pos_encoding, where the 0.1 keeps rounding from losing a row, and shifts the points.
    """
    if old_grid == new_grid:
        return positions
    grid = positions.unflatten(1, old_grid).permute(0, 3, 1, 2)
    scale = ((new_grid[0] + 0.1) / old_grid[0], (new_grid[1] + 0.1) / old_grid[1])
    return F.interpolate(grid, scale_factor=scale, mode="bicubic").flatten(2).transpose(1, 2)
