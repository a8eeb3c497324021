"""In-context segmentation with loops: the formulas of the protocol, patch by patch and pixel by pixel.

Which patches are remembered is handed in: that draw is random and has its own tests.
"""

import math

import numpy as np

IGNORED = 255


def label_share(mask: np.ndarray, patch: int, columns: int, side: int, num_classes: int) -> list[float]:
    """Of one patch: the share of every class among its scored pixels."""
    row, column = divmod(patch, columns)
    pixels = [mask[row * side + y, column * side + x] for y in range(side) for x in range(side)]
    scored = [label for label in pixels if label != IGNORED]
    return [scored.count(c) / len(scored) for c in range(num_classes)]


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b) / math.sqrt(float(a @ a) * float(b @ b))


def patch_labels(token, keys, key_labels, num_neighbors: int, temperature: float) -> np.ndarray:
    """The labels of the nearest keys, weighted by a softmax over cosine / temperature."""
    nearest = sorted(
        ((cosine(token, key), label) for key, label in zip(keys, key_labels, strict=True)), key=lambda p: -p[0]
    )
    nearest = nearest[:num_neighbors]
    weights = [math.exp((similarity - nearest[0][0]) / temperature) for similarity, _ in nearest]
    return sum(w * np.array(label) for w, (_, label) in zip(weights, nearest, strict=True)) / sum(weights)


def upsample(grid: np.ndarray, height: int, width: int) -> np.ndarray:
    """Bilinear between patch centres, constant beyond the outer ones; grid [R, S, C]."""
    rows, columns, num_classes = grid.shape
    out = np.zeros((height, width, num_classes))
    for y in range(height):
        for x in range(width):
            v = min(max((y + 0.5) * rows / height - 0.5, 0), rows - 1)
            u = min(max((x + 0.5) * columns / width - 0.5, 0), columns - 1)
            top, left = int(v), int(u)
            bottom, right = min(top + 1, rows - 1), min(left + 1, columns - 1)
            out[y, x] = (
                grid[top, left] * (1 - v + top) * (1 - u + left)
                + grid[top, right] * (1 - v + top) * (u - left)
                + grid[bottom, left] * (v - top) * (1 - u + left)
                + grid[bottom, right] * (v - top) * (u - left)
            )
    return out
