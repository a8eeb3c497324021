"""Random resized crops of 8-bit images: the box, the resize and the horizontal flip."""

import math
from typing import NamedTuple

import cv2
import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from selfpatch.data.augmentation.random_source import RandomSource, uniform

Image = UInt8[np.ndarray, "H W 3"]


class CropBox(NamedTuple):
    """A rectangle of an image, in pixels, in torchvision's order."""

    top: int
    left: int
    height: int
    width: int


def sample_crop_box(
    rng: RandomSource,
    rows: int,
    columns: int,
    scale: tuple[float, float],
    aspect_ratio: float = 1.0,
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> CropBox:
    """Sample a box as torchvision's RandomResizedCrop.get_params: ten tries inside the image, then the central box.

    Args:
        scale: lower and upper bound of the box's area, as a fraction of the image's.
        aspect_ratio: width / height of the crop to be made. torchvision always takes 1, which stretches the content of
            crops that are not square.
        ratio: lower and upper bound of the box's width / height, relative to `aspect_ratio`.
    """
    log_ratio = math.log(ratio[0]), math.log(ratio[1])
    for _ in range(10):
        area = rows * columns * uniform(rng, *scale)
        box_ratio = aspect_ratio * math.exp(uniform(rng, *log_ratio))
        width, height = round(math.sqrt(area * box_ratio)), round(math.sqrt(area / box_ratio))
        if 0 < width <= columns and 0 < height <= rows:
            top, left = int(rng.random() * (rows - height + 1)), int(rng.random() * (columns - width + 1))
            return CropBox(top, left, height, width)
    height = min(rows, max(1, round(columns / (aspect_ratio * ratio[0]))))
    width = min(columns, max(1, round(rows * aspect_ratio * ratio[1])))
    return CropBox((rows - height) // 2, (columns - width) // 2, height, width)


def resized_crop(image: Image, box: CropBox, flip: bool, size: tuple[int, int]) -> UInt8[np.ndarray, "R S 3"]:
    """Crop, resize to `size` (rows, columns) by bicubic interpolation, antialiased as Pillow's, and maybe flip."""
    resized = np.empty((*size, 3), np.uint8)
    resize_into(image, box, _as_batch(resized))
    return cv2.flip(resized, 1) if flip else resized


def resize_into(image: Image, box: CropBox, out: UInt8[Tensor, "1 3 R S"]) -> None:
    """Write the resized box to `out`: `interpolate(mode="bicubic", antialias=True)`, which itself takes no `out`."""
    part = _as_batch(image[box.top : box.top + box.height, box.left : box.left + box.width])
    torch._C._nn._upsample_bicubic2d_aa(part, out.shape[-2:], False, None, None, out=out)


def _as_batch(image: Image) -> UInt8[Tensor, "1 3 H W"]:
    # Batch first, then permute: torch sees that channels come last and keeps them there, which saves a slow copy.
    return torch.from_numpy(image)[None].permute(0, 3, 1, 2)
