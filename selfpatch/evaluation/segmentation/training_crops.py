"""Training augmentation of labeled images for segmentation heads (scale, crop, flip, colors), and their batches.

Source: mmsegmentation's pipeline for ADE20K, which DINOv2 uses for its linear layer too, and DINOv3 with other colors.
Differs: labels are resized about the middles of pixels, where OpenCV takes their upper left corners.
"""

from collections.abc import Sequence
from typing import Literal

import cv2
import numpy as np
import torch
from jaxtyping import Float, Int64, Real, UInt8
from torch import Tensor
from torchvision.transforms.functional import adjust_hue, adjust_saturation

from selfpatch.evaluation.features import keep_ratio_size, normalized, resize_image, resize_mask
from selfpatch.evaluation.metrics import IGNORED
from selfpatch.evaluation.protocols.decoder_training import DecoderTraining
from selfpatch.evaluation.protocols.linear_segmentation import LinearSegmentation

CROP_TRIES = 10  # to find a crop in which no class has more than cat_max_ratio; the next one is taken as it is
MAX_BRIGHTNESS = 32  # added to or taken from the 256 levels
CONTRAST = SATURATION = (0.5, 1.5)  # factors
MAX_HUE = 18  # added or taken, of OpenCV's 180
MAX_HUE_HALF_CIRCLE = 0.5  # added or taken, of a full turn


def rescale(image: Real[np.ndarray, "H W _c"], size: tuple[int, int], *, antialias: bool) -> Real[np.ndarray, "R S _c"]:
    """Bilinear, to (rows, columns); without antialias as OpenCV does it, from the four nearest pixels."""
    if antialias:
        return resize_image(image, size)
    resized = cv2.resize(image, (size[1], size[0]), interpolation=cv2.INTER_LINEAR)
    return resized.reshape(*size, image.shape[2])  # OpenCV drops an axis of one channel


def random_crop(
    image: Real[np.ndarray, "H W _c"],
    mask: UInt8[np.ndarray, "H W"],
    rng: np.random.Generator,
    protocol: LinearSegmentation | DecoderTraining,
    *,
    size: tuple[int, int],
) -> tuple[Real[np.ndarray, "h w _c"], UInt8[np.ndarray, "h w"]]:
    """A crop of at most `size` of the image resized to the protocol's size times a random factor."""
    factor = rng.uniform(*protocol.scale)
    long_side = None if protocol.long_side is None else max(1, int(protocol.long_side * factor))
    scaled = keep_ratio_size(mask.shape, max(1, int(protocol.image_size * factor)), long_side)
    mask = resize_mask(mask, scaled)

    def random_part() -> tuple[slice, slice]:
        top, left = (int(rng.integers(max(whole - part, 0) + 1)) for whole, part in zip(scaled, size, strict=True))
        return slice(top, top + size[0]), slice(left, left + size[1])

    part = random_part()
    for _ in range(CROP_TRIES if protocol.cat_max_ratio < 1 else 0):
        counts = np.bincount(mask[part].ravel(), minlength=IGNORED + 1)[:IGNORED]
        if counts.max() < protocol.cat_max_ratio * counts.sum():
            break
        part = random_part()
    image, mask = rescale(image, scaled, antialias=protocol.antialias)[part], mask[part]
    if rng.random() < protocol.hflip_prob:
        image, mask = image[:, ::-1], mask[:, ::-1]
    return np.ascontiguousarray(image), np.ascontiguousarray(mask)


def photometric_distortion(
    image: Real[np.ndarray, "H W _c"], rng: np.random.Generator, *, style: Literal["dinov3", "mmseg"] = "mmseg"
) -> Real[np.ndarray, "H W _c"]:
    """Brightness, contrast, saturation and hue, each with probability 1/2; contrast comes second or last.

    Of other images than 8-bit RGB brightness and contrast alone.

    Source: mmsegmentation's PhotoMetricDistortion; DINOv3's class of the same name.
    """
    if image.dtype != np.uint8 or image.shape[2] != 3:
        return distort_any_channels(image, rng)
    if rng.random() < 0.5:
        image = to_uint8(image + rng.uniform(-MAX_BRIGHTNESS, MAX_BRIGHTNESS))
    contrast = rng.uniform(*CONTRAST) if rng.random() < 0.5 else 1.0
    contrast_comes_last = rng.random() < 0.5
    if not contrast_comes_last:
        image = to_uint8(image * contrast)
    change_saturation, change_hue = STYLES[style]
    if rng.random() < 0.5:
        image = change_saturation(image, rng)
    if rng.random() < 0.5:
        image = change_hue(image, rng)
    return to_uint8(image * contrast) if contrast_comes_last else image


def distort_any_channels(image: Real[np.ndarray, "H W _c"], rng: np.random.Generator) -> Real[np.ndarray, "H W _c"]:
    white = 255 if image.dtype == np.uint8 else 1
    shift = rng.uniform(-MAX_BRIGHTNESS, MAX_BRIGHTNESS) / 255 * white if rng.random() < 0.5 else 0.0
    contrast = rng.uniform(*CONTRAST) if rng.random() < 0.5 else 1.0
    return ((image + np.float32(shift)) * np.float32(contrast)).clip(0, white).astype(image.dtype)


def scale_saturation(image: Real[np.ndarray, "H W _c"], rng: np.random.Generator) -> Real[np.ndarray, "H W _c"]:
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
    hsv[..., 1] = to_uint8(hsv[..., 1] * rng.uniform(*SATURATION))
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)


def turn_hue(image: Real[np.ndarray, "H W _c"], rng: np.random.Generator) -> Real[np.ndarray, "H W _c"]:
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
    hsv[..., 0] = (hsv[..., 0].astype(np.int16) + rng.integers(-MAX_HUE, MAX_HUE)) % 180
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)


def blend_with_gray(image: Real[np.ndarray, "H W _c"], rng: np.random.Generator) -> Real[np.ndarray, "H W _c"]:
    return from_chw(adjust_saturation(to_chw(image), rng.uniform(*SATURATION)))


def turn_hue_fully(image: Real[np.ndarray, "H W _c"], rng: np.random.Generator) -> Real[np.ndarray, "H W _c"]:
    return from_chw(adjust_hue(to_chw(image), rng.uniform(-MAX_HUE_HALF_CIRCLE, MAX_HUE_HALF_CIRCLE)))


STYLES = {"mmseg": (scale_saturation, turn_hue), "dinov3": (blend_with_gray, turn_hue_fully)}


def to_chw(image: Real[np.ndarray, "H W _c"]) -> Real[Tensor, "_c H W"]:
    return torch.from_numpy(image).permute(2, 0, 1)


def from_chw(image: Real[Tensor, "_c H W"]) -> Real[np.ndarray, "H W _c"]:
    return np.ascontiguousarray(image.permute(1, 2, 0).numpy())


def to_uint8(values: np.ndarray) -> np.ndarray:
    return values.clip(0, 255).astype(np.uint8)


def collate(
    samples: Sequence[tuple[Real[np.ndarray, "_ _ _c"], UInt8[np.ndarray, "_ _"]]],
    size: tuple[int, int],
    mean: Sequence[float],
    std: Sequence[float],
    *,
    device: torch.device,
) -> tuple[Float[Tensor, "B _c h w"], Int64[Tensor, "B h w"]]:
    """Crops as one batch, padded to `size` with the mean color and IGNORED on the right and below."""
    images = torch.zeros(len(samples), len(mean), *size, device=device)
    masks = torch.full((len(samples), *size), IGNORED, device=device)
    for i, (image, mask) in enumerate(samples):
        rows, columns = mask.shape
        images[i, :, :rows, :columns] = normalized(torch.from_numpy(image)[None].to(device), mean, std)[0]
        masks[i, :rows, :columns] = torch.from_numpy(mask).to(device)
    return images, masks
