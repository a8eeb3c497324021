"""Color augmentation of one crop: jitter, grayscale, blur and solarize, in the order of DINO.

Weighted sums, one HSV round trip and one separable filter, all by OpenCV: on levels of 8 bits, rounded as Pillow does,
or on values from 0 to 1. Crops of other than three channels have no hue, saturation or gray: theirs are brightness,
contrast about the mean of each channel, a gain per channel, blur and solarize.
"""

from typing import Any

import cv2
import numpy as np

from selfpatch.data.augmentation.blur_kernel import blur_kernel
from selfpatch.data.augmentation.geometry import Image
from selfpatch.data.augmentation.params import BRIGHTNESS, CONTRAST, SATURATION, ColorParams, JitterParams

GRAY_WEIGHTS = (0.299, 0.587, 0.114)  # ITU-R 601-2, Pillow's "L"
_SOLARIZED = np.array([level if level < 128 else 255 - level for level in range(256)], np.uint8)


def apply_color(crop: Image, params: ColorParams) -> Image:
    shape = crop.shape
    if params.jitter is not None:
        crop = jitter_colors(crop, params.jitter)
    if params.grayscale:
        crop = _gray(crop)
    if params.blur_sigma is not None:
        kernel = blur_kernel(params.blur_sigma)
        crop = cv2.sepFilter2D(crop, -1, kernel, kernel, borderType=cv2.BORDER_REPLICATE)
    if params.solarize:
        crop = cv2.LUT(crop, _SOLARIZED) if crop.dtype == np.uint8 else np.where(crop < 0.5, crop, 1 - crop)
    return crop.reshape(shape)  # OpenCV drops an axis of one channel


def jitter_colors(crop: Image, jitter: JitterParams) -> Image:
    """Apply Pillow's enhancers and torchvision's hue shift in the order of `jitter`; then gains."""
    for op in jitter.order:
        if op == BRIGHTNESS:
            crop = _blend(crop, crop, jitter.brightness, 0.0)
        elif op == CONTRAST and crop.shape[2] != 3:
            means = crop.mean(axis=(0, 1), dtype=np.float64)
            crop = _scale(crop, jitter.contrast, means * (1 - jitter.contrast))
        elif op == CONTRAST:
            mean = float(np.dot(cv2.mean(crop)[:3], np.array(GRAY_WEIGHTS, np.float32)))
            mean = round(mean) if crop.dtype == np.uint8 else mean
            crop = _blend(crop, crop, jitter.contrast, 0.0, offset=mean * (1 - jitter.contrast))
        elif op == SATURATION:
            crop = _blend(crop, _gray(crop), jitter.saturation, 1 - jitter.saturation)
        elif crop.dtype == np.uint8:
            hsv = cv2.cvtColor(crop, cv2.COLOR_RGB2HSV_FULL)  # FULL: a turn is 256 levels
            hue = cv2.extractChannel(hsv, 0) + np.uint8(jitter.hue_levels % 256)  # goes round at 256
            crop = cv2.cvtColor(cv2.insertChannel(hue, hsv, 0), cv2.COLOR_HSV2RGB_FULL)
        else:
            hsv = cv2.cvtColor(crop, cv2.COLOR_RGB2HSV)  # of floats a turn is 360
            hsv[..., 0] = (hsv[..., 0] + 360 * jitter.hue) % 360
            crop = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
    return _scale(crop, np.array(jitter.gains), 0.0) if jitter.gains else crop


def _blend(a: Image, b: Image, a_weight: float, b_weight: float, offset: float = 0.0) -> Image:
    """a * a_weight + b * b_weight + offset, clipped to black and white; levels rounded down as Pillow does."""
    if a.dtype == np.uint8:
        # OpenCV rounds. The thousandth keeps results that are whole numbers already.
        return cv2.addWeighted(a, a_weight, b, b_weight, offset - 0.499).reshape(a.shape)
    return np.clip(cv2.addWeighted(a, a_weight, b, b_weight, offset).reshape(a.shape), 0, 1)


def _scale(crop: Image, factors: Any, offsets: Any) -> Image:
    """crop * factors + offsets per channel, clipped and rounded as `_blend` does."""
    changed = crop * np.asarray(factors, np.float32) + np.asarray(offsets, np.float32)
    if crop.dtype == np.uint8:
        return np.clip(np.floor(changed + 1e-3), 0, 255).astype(np.uint8)
    return np.clip(changed, 0, 1)


def _gray(crop: Image) -> Image:
    return cv2.cvtColor(cv2.cvtColor(crop, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
