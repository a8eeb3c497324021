"""Masks of patches: how many, of which shape, and that they depend on seed, step and image alone."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from selfpatch.config.masks import MaskConfig
from selfpatch.pretraining.masks import draw_masks

GRID = (14, 14)


def draw(config: MaskConfig, *, seed=0, step=0, indices=range(200), num_crops=2, grid=GRID) -> torch.Tensor:
    return draw_masks(config, indices, seed=seed, step=step, num_crops=num_crops, grid_size=grid)


@pytest.mark.parametrize("kind", ["random", "block"])
@pytest.mark.parametrize("grid", [(14, 14), (3, 5), (1, 1), (2, 40)])
def test_numbers_of_masked_patches(kind, grid):
    masks = draw(MaskConfig(kind=kind, ratio=(0.2, 0.6), prob=0.7), grid=grid)
    assert masks.shape == (2, 200, grid[0] * grid[1])
    fractions = masks.float().mean(dim=-1).flatten()
    masked = fractions[fractions > 0]
    half_a_patch = 0.5 / (grid[0] * grid[1])
    assert masked.numel() == 0 or (masked.min() >= 0.2 - half_a_patch and masked.max() <= 0.6 + half_a_patch)
    if grid == GRID:
        assert 0.62 < len(masked) / 400 < 0.78
        assert 0.37 < masked.mean() < 0.43


def test_blocks_hang_together_and_single_patches_do_not():
    def num_pieces(kind: str) -> float:
        masks = draw(MaskConfig(kind=kind, ratio=(0.3, 0.3), prob=1.0), num_crops=1)[0]
        return float(np.mean([ndimage.label(mask.unflatten(0, GRID).numpy())[1] for mask in masks]))

    assert num_pieces("block") < 6 < 15 < num_pieces("random")


def test_every_patch_is_masked_equally_often_at_random():
    often = draw(MaskConfig(kind="random", ratio=(0.5, 0.5), prob=1.0), indices=range(400)).float().mean(dim=(0, 1))
    assert often.min() > 0.4 and often.max() < 0.6


def test_masks_depend_on_seed_step_and_image_alone():
    config = MaskConfig(prob=1.0)
    masks = draw(config, indices=[4, 7, 9])
    assert torch.equal(draw(config, indices=[9, 4])[:, 1], masks[:, 0])
    assert torch.equal(draw(config, indices=[9])[:, 0], masks[:, 2])
    assert not torch.equal(masks[0], masks[1]), "crops of an image have masks of their own"
    for other in (draw(config, indices=[4], seed=1), draw(config, indices=[4], step=1)):
        assert not torch.equal(other[:, 0], masks[:, 0])
