"""Labelled images whose colours give the classes away, folders of them, and backbones that see colours or nothing."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from selfpatch.backbones.backbone import Backbone, Tokens

COLORS = np.array([(230, 40, 40), (40, 200, 60), (50, 60, 220), (240, 220, 50)], np.uint8)


def random_mask(rng: np.random.Generator, size: tuple[int, int], num_classes: int, cell: tuple[int, int]) -> np.ndarray:
    """Classes 0 to C - 1 in rectangles of `cell` pixels."""
    rows, columns = -(-size[0] // cell[0]), -(-size[1] // cell[1])
    coarse = rng.integers(0, num_classes, (rows, columns), dtype=np.uint8)
    return coarse.repeat(cell[0], axis=0).repeat(cell[1], axis=1)[: size[0], : size[1]]


def save_pair(image: Path, mask: Path, labels: np.ndarray, pixels: np.ndarray) -> None:
    for path, array in ((image, pixels), (mask, labels)):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(path)


def write_ade20k(
    root: Path,
    *,
    num_train: int = 6,
    num_val: int = 3,
    size: tuple[int, int] = (32, 48),
    num_classes: int = 4,
    cell: tuple[int, int] = (8, 8),
    seed: int = 0,
) -> Path:
    rng = np.random.default_rng(seed)
    for split, count in (("training", num_train), ("validation", num_val)):
        for i in range(count):
            mask = random_mask(rng, size, num_classes, cell)
            mask[: cell[0], : cell[1]] = num_classes - 1  # so that every class occurs
            name = f"{split}_{i}"
            save_pair(
                root / f"images/{split}/{name}.png", root / f"annotations/{split}/{name}.png", mask + 1, COLORS[mask]
            )
    return root


def write_stripes(
    root: Path, stripes: list[tuple[int, int, int]], *, width: int = 16, num_train: int = 2, num_val: int = 1
) -> Path:
    """ADE20K's layout; every image has the same stripes of (rows, class, which of COLORS)."""
    labels = np.concatenate([np.full((rows, width), label, np.uint8) for rows, label, _ in stripes])
    colors = np.concatenate([np.full((rows, width), color, np.uint8) for rows, _, color in stripes])
    for split, count in (("training", num_train), ("validation", num_val)):
        for i in range(count):
            name = f"{split}_{i}.png"
            save_pair(root / f"images/{split}/{name}", root / f"annotations/{split}/{name}", labels + 1, COLORS[colors])
    return root


class ColorBackbone(Backbone):
    """A patch token is the mean colour of the patch."""

    embed_dim = 3
    mean, std = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)

    def __init__(self, patch_size: tuple[int, int] = (8, 8)):
        super().__init__()
        self.patch_size = patch_size
        self.dropout = nn.Dropout(0.5)  # must be off
        self.frozen = nn.BatchNorm1d(3).eval()  # a part that stays in eval mode while the rest trains

    def forward(self, images, masks=None):
        rows, columns = images.shape[2] // self.patch_size[0], images.shape[3] // self.patch_size[1]
        patches = nn.functional.avg_pool2d(images, self.patch_size).flatten(2).transpose(1, 2)
        return Tokens(None, self.dropout(patches), (rows, columns))


class BlindBackbone(ColorBackbone):
    """All patches look alike."""

    def forward(self, images):
        tokens = super().forward(images)
        return tokens._replace(patch_tokens=torch.ones_like(tokens.patch_tokens))
