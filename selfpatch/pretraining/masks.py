"""Masks of patches: pure functions of seed, step and image, so that a run that goes on draws the same ones."""

import math
from collections.abc import Iterable

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from selfpatch.config.masks import MaskConfig

# First word of what numpy is seeded with: apart from those of orders and crops (data/loading/sampler.py).
_MASK = 3
# Smallest block in patches, and its lowest aspect ratio: DINOv2's values. iBOT's smallest block is a ninth of the grid.
MIN_BLOCK_SIZE, MIN_ASPECT = 4, 0.3
# Blocks that do not add a patch before the rest is drawn patch by patch.
MAX_TRIES = 10


def draw_masks(
    config: MaskConfig, indices: Iterable[int], *, seed: int, step: int, num_crops: int, grid_size: tuple[int, int]
) -> Bool[Tensor, "G B N"]:
    """Masks of `num_crops` global crops of the images of a step; True: the patch is hidden from the student."""
    masks = [
        [_draw_mask(config, rng, grid_size) for _ in range(num_crops)]
        for rng in (np.random.default_rng([_MASK, seed, step, index]) for index in indices)
    ]
    return torch.from_numpy(np.array(masks)).transpose(0, 1).flatten(2)


def _draw_mask(config: MaskConfig, rng: np.random.Generator, grid_size: tuple[int, int]) -> Bool[np.ndarray, "R S"]:
    mask = np.zeros(grid_size, bool)
    if rng.random() >= config.prob:
        return mask
    num_masked = round(rng.uniform(*config.ratio) * mask.size)
    if config.kind == "block":
        _add_blocks(mask, num_masked, rng)
    visible = np.flatnonzero(~mask)
    mask.flat[rng.choice(visible, num_masked - int(mask.sum()), replace=False)] = True
    return mask


def _add_blocks(mask: Bool[np.ndarray, "R S"], num_masked: int, rng: np.random.Generator) -> None:
    """Rectangles at random places, as long as one that fits into what is left to mask is found.

    Source: BEiT's masking_generator as iBOT uses it. Differs: what blocks leave over is masked patch by patch, as in
    DINOv2.
    """
    rows, columns = mask.shape
    failed = 0
    while (left := num_masked - int(mask.sum())) >= MIN_BLOCK_SIZE and failed < MAX_TRIES:
        area = rng.uniform(MIN_BLOCK_SIZE, left)
        aspect = math.exp(rng.uniform(math.log(MIN_ASPECT), -math.log(MIN_ASPECT)))
        height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        failed += 1
        if 0 < height <= rows and 0 < width <= columns:
            top, left_column = rng.integers(rows - height + 1), rng.integers(columns - width + 1)
            block = mask[top : top + height, left_column : left_column + width]
            if 0 < block.size - int(block.sum()) <= left:
                block[:] = True
                failed = 0
