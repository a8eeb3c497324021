"""Random resized crops of images of any depth: the box, the resize and the horizontal flip."""

import math
from typing import NamedTuple

import cv2
import numpy as np
import torch
from jaxtyping import Float32, Real, UInt8
from torch import Tensor

from selfpatch.data.augmentation.random_source import RandomSource, uniform

# Levels from 0 to 255, or values from 0 to 1.
Image = UInt8[np.ndarray, "H W C"] | Float32[np.ndarray, "H W C"]


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


def resized_crop(image: Image, box: CropBox, flip: bool, size: tuple[int, int]) -> Real[np.ndarray, "R S C"]:
    """Crop, resize to `size` (rows, columns) by bicubic interpolation, antialiased as Pillow's, and maybe flip."""
    resized = np.empty((*size, image.shape[2]), image.dtype)
    resize_into(image, box, _as_batch(resized))
    # OpenCV drops an axis of one channel.
    return cv2.flip(resized, 1).reshape(resized.shape) if flip else resized


def resize_into(image: Image, box: CropBox, out: Real[Tensor, "1 C R S"]) -> None:
    """Write the resized box to `out`: `interpolate(mode="bicubic", antialias=True)`, which itself takes no `out`."""
    part = _as_batch(image[box.top : box.top + box.height, box.left : box.left + box.width])
    torch._C._nn._upsample_bicubic2d_aa(part, out.shape[-2:], False, None, None, out=out)
    if out.dtype.is_floating_point:
        out.clamp_(0, 1)  # bicubic interpolation overshoots at edges; of levels it clips by itself


def _as_batch(image: Image) -> Real[Tensor, "1 C H W"]:
    # Batch first, then permute: torch sees that channels come last and keeps them there, which saves a slow copy.
    return torch.from_numpy(image)[None].permute(0, 3, 1, 2)
