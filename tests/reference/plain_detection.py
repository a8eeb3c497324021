"""What a detector is taught, and how its masks become pixels, said slowly: boxes from masks, a loop over pixels."""

import math

import numpy as np


def box_of(mask: np.ndarray) -> list[int]:
    """left, top, right, bottom of the pixels that are set; the last two just outside."""
    rows = [y for y in range(mask.shape[0]) if mask[y].any()]
    columns = [x for x in range(mask.shape[1]) if mask[:, x].any()]
    return [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]


def nearest(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Every new pixel is the old one that its middle falls into."""
    out = np.zeros(size, mask.dtype)
    for y in range(size[0]):
        for x in range(size[1]):
            out[y, x] = mask[int((y + 0.5) * mask.shape[0] / size[0]), int((x + 0.5) * mask.shape[1] / size[1])]
    return out


def interpolated(grid: np.ndarray, y: float, x: float) -> float:
    """Bilinear between the middles of cells, which are at whole numbers; 0 outside of the grid."""
    value = 0.0
    for row in (math.floor(y), math.floor(y) + 1):
        for column in (math.floor(x), math.floor(x) + 1):
            if 0 <= row < grid.shape[0] and 0 <= column < grid.shape[1]:
                value += grid[row, column] * (1 - abs(y - row)) * (1 - abs(x - column))
    return value


def pasted(grid: np.ndarray, box: list[float], size: tuple[int, int]) -> np.ndarray:
    """A grid that covers the box, seen at the middle of every pixel."""
    left, top, right, bottom = box
    out = np.zeros(size)
    for y in range(size[0]):
        for x in range(size[1]):
            row = (y + 0.5 - top) / (bottom - top) * grid.shape[0] - 0.5
            column = (x + 0.5 - left) / (right - left) * grid.shape[1] - 0.5
            out[y, x] = interpolated(grid, row, column)
    return out


def mask_target(mask: np.ndarray, box: list[float], side: int) -> np.ndarray:
    """1 where a cell of the box is at least half covered, the mean over points at the middles of a finer grid.

    As many points as pixels across a cell, rounded up; the mask is bilinear between pixels' middles.
    """
    left, top, right, bottom = box
    height, width = (bottom - top) / side, (right - left) / side
    down, across = math.ceil(height), math.ceil(width)
    out = np.zeros((side, side))
    for row in range(side):
        for column in range(side):
            values = [
                at_border(
                    mask,
                    top + (row + (i + 0.5) / down) * height - 0.5,
                    left + (column + (j + 0.5) / across) * width - 0.5,
                )
                for i in range(down)
                for j in range(across)
            ]
            out[row, column] = np.mean(values) >= 0.5
    return out


def at_border(mask: np.ndarray, y: float, x: float) -> float:
    """RoIAlign's bilinear: within a pixel of the image the border goes on, farther out is 0."""
    if y < -1 or y > mask.shape[0] or x < -1 or x > mask.shape[1]:
        return 0.0
    y, x = (min(max(value, 0), end - 1) for value, end in zip((y, x), mask.shape, strict=True))
    return interpolated(mask, y, x)
