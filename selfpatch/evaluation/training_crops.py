"""How labelled images are varied while a segmentation head trains: scale, crop, flip, colours.

Source: mmsegmentation's pipeline for ADE20K, which DINOv2 and DINOv3 use for their linear layers too.
"""

import cv2
import numpy as np
from jaxtyping import UInt8

from selfpatch.evaluation.features import resize_image, resize_mask
from selfpatch.evaluation.metrics import IGNORED
from selfpatch.evaluation.protocols.linear_segmentation import LinearSegmentation

CROP_TRIES = 10  # to find a crop in which no class has more than max_class_share
MAX_BRIGHTNESS = 32  # added to or taken from the 256 levels
CONTRAST = SATURATION = (0.5, 1.5)  # factors
MAX_HUE = 18  # added or taken, of OpenCV's 180


def short_side_size(image_size: tuple[int, int], short_side: int) -> tuple[int, int]:
    """(rows, columns) with this short side and the aspect kept."""
    height, width = (int(side * short_side / min(image_size) + 0.5) for side in image_size)
    return height, width


def random_crop(
    image: UInt8[np.ndarray, "H W 3"],
    mask: UInt8[np.ndarray, "H W"],
    rng: np.random.Generator,
    protocol: LinearSegmentation,
    *,
    size: tuple[int, int],
) -> tuple[UInt8[np.ndarray, "h w 3"], UInt8[np.ndarray, "h w"]]:
    """A part of at most `size`, of the image with a short side of image_size times a random factor."""
    scaled = short_side_size(mask.shape, int(protocol.image_size * rng.uniform(*protocol.scale)))
    mask = resize_mask(mask, scaled)
    for _ in range(CROP_TRIES if protocol.max_class_share < 1 else 1):
        top, left = (int(rng.integers(max(whole - part, 0) + 1)) for whole, part in zip(scaled, size, strict=True))
        part = (slice(top, top + size[0]), slice(left, left + size[1]))
        counts = np.bincount(mask[part].ravel(), minlength=IGNORED + 1)[:IGNORED]
        if counts.max() < protocol.max_class_share * counts.sum():
            break
    image, mask = resize_image(image, scaled)[part], mask[part]
    if rng.random() < protocol.flip_prob:
        image, mask = image[:, ::-1], mask[:, ::-1]
    return np.ascontiguousarray(image), np.ascontiguousarray(mask)


def distort_colors(image: UInt8[np.ndarray, "H W 3"], rng: np.random.Generator) -> UInt8[np.ndarray, "H W 3"]:
    """Brightness, contrast, saturation and hue, each with probability 1/2; contrast comes second or last."""
    if rng.random() < 0.5:
        image = as_levels(image + rng.uniform(-MAX_BRIGHTNESS, MAX_BRIGHTNESS))
    contrast = rng.uniform(*CONTRAST) if rng.random() < 0.5 else 1.0
    contrast_comes_last = rng.random() < 0.5
    if not contrast_comes_last:
        image = as_levels(image * contrast)
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
    if rng.random() < 0.5:
        hsv[..., 1] = as_levels(hsv[..., 1] * rng.uniform(*SATURATION))
    if rng.random() < 0.5:
        hsv[..., 0] = (hsv[..., 0].astype(np.int16) + rng.integers(-MAX_HUE, MAX_HUE)) % 180
    image = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
    return as_levels(image * contrast) if contrast_comes_last else image


def as_levels(values: np.ndarray) -> np.ndarray:
    return values.clip(0, 255).astype(np.uint8)
