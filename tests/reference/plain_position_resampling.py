"""DINO's resampling of position embeddings, number by number."""

import math

import torch
from torch import Tensor


def resample_positions(positions: Tensor, new_grid: tuple[int, int]) -> Tensor:
    """[R, S, D] to [R2, S2, D]: bicubic; row i of the new lies at row (i + 0.5) / scale - 0.5 of the old.

    The scale is (new + 0.1) / old. Columns likewise; beyond the border the border is repeated.
    """
    return _along_rows(_along_rows(positions, new_grid[0]).transpose(0, 1), new_grid[1]).transpose(0, 1)


def _along_rows(values: Tensor, num_new: int) -> Tensor:
    num_old = len(values)
    scale = (num_new + 0.1) / num_old
    rows = []
    for i in range(num_new):
        point = (i + 0.5) / scale - 0.5
        first = math.floor(point) - 1
        rows.append(sum(_cubic(point - j) * values[min(max(j, 0), num_old - 1)] for j in range(first, first + 4)))
    return torch.stack(rows)


def _cubic(distance: float) -> float:
    """Keys' kernel with a = -0.75."""
    x = abs(distance)
    if x <= 1:
        return 1.25 * x**3 - 2.25 * x**2 + 1
    return -0.75 * (x**3 - 5 * x**2 + 8 * x - 4)


def resample_positions_antialiased(positions: Tensor, new_grid: tuple[int, int]) -> Tensor:
    """[R, S, D] to [R2, S2, D]: bicubic, with a kernel as wide as a new row when there are fewer of them.

    Row i of the new lies at row (i + 0.5) * old / new - 0.5 of the old; weights beyond the border are left out and the
    others sum to 1.
    """
    rows = _along_rows_antialiased(positions, new_grid[0]).transpose(0, 1)
    return _along_rows_antialiased(rows, new_grid[1]).transpose(0, 1)


def _along_rows_antialiased(values: Tensor, num_new: int) -> Tensor:
    num_old = len(values)
    stretch = max(num_old / num_new, 1)
    rows = []
    for i in range(num_new):
        point = (i + 0.5) * num_old / num_new - 0.5
        weights = [_soft_cubic((j - point) / stretch) for j in range(num_old)]
        rows.append(sum(weight * value for weight, value in zip(weights, values, strict=True)) / sum(weights))
    return torch.stack(rows)


def _soft_cubic(distance: float) -> float:
    """Keys' kernel with a = -0.5."""
    x = abs(distance)
    if x <= 1:
        return 1.5 * x**3 - 2.5 * x**2 + 1
    return -0.5 * (x**3 - 5 * x**2 + 8 * x - 4) if x < 2 else 0.0
