"""Position embeddings of sines and cosines that are not learned: MoCo-v3 and MAE order them differently.

Both give a quarter of the channels each to the sine and cosine of the row, and of the column. MoCo-v3 has the row
first, MAE (and I-JEPA, which took it over) the column. Source: build_2d_sincos_position_embedding in facebookresearch/
moco-v3 vits.py, whose meshgrid runs over rows first; get_2d_sincos_pos_embed in facebookresearch/mae, "w goes first".
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

# Half precision keeps sines and cosines to 5e-4, bfloat16 to 4e-3.
TOLERANCE = 5e-3


def find_fixed_positions(tensors: dict[str, Tensor]) -> str | None:
    """ "row first" (MoCo-v3), "column first" (MAE), or None: learned, or no positions at all."""
    positions = tensors.get("pos_embed")
    if positions is None or positions.ndim != 3 or positions.shape[0] != 1 or positions.shape[2] % 4:
        return None
    _, num_positions, width = positions.shape
    grid = math.isqrt(num_positions)
    has_class = grid**2 != num_positions
    grid = math.isqrt(num_positions - has_class)
    # On a grid of one patch both orders are the same.
    if grid < 2 or grid**2 + has_class != num_positions or (has_class and bool((positions[0, 0] != 0).any())):
        return None
    patches = positions[0, int(has_class) :].float()
    for order in ("row first", "column first"):
        if (patches - sine_cosine(grid, width, order)).abs().max() < TOLERANCE:
            return order
    return None


def sine_cosine(grid: int, width: int, order: str) -> Float[Tensor, "N D"]:
    """Sine and cosine of the first coordinate, then of the second, at width / 4 frequencies from 1 to 1 / 10,000."""
    frequencies = 10_000 ** -(torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    rows, columns = torch.meshgrid(torch.arange(grid), torch.arange(grid), indexing="ij")
    first, second = (rows, columns) if order == "row first" else (columns, rows)
    angles = [coordinate.flatten()[:, None] * frequencies for coordinate in (first, second)]
    return torch.cat([part for angle in angles for part in (angle.sin(), angle.cos())], dim=1).float()
