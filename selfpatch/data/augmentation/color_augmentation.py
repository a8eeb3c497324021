"""Color augmentation of one 8-bit crop: jitter, grayscale, blur and solarize, in the order of DINO.

Weighted sums, one HSV round trip and one separable filter, all by OpenCV.
"""

import cv2
import numpy as np

from selfpatch.data.augmentation.blur_kernel import blur_kernel
from selfpatch.data.augmentation.geometry import Image
from selfpatch.data.augmentation.params import BRIGHTNESS, CONTRAST, SATURATION, ColorParams, JitterParams

GRAY_WEIGHTS = (0.299, 0.587, 0.114)  # ITU-R 601-2, Pillow's "L"
_SOLARIZED = np.array([level if level < 128 else 255 - level for level in range(256)], np.uint8)


def apply_color(crop: Image, params: ColorParams) -> Image:
    if params.jitter is not None:
        crop = jitter_colors(crop, params.jitter)
    if params.grayscale:
        crop = _gray(crop)
    if params.blur_sigma is not None:
        kernel = blur_kernel(params.blur_sigma)
        crop = cv2.sepFilter2D(crop, -1, kernel, kernel, borderType=cv2.BORDER_REPLICATE)
    if params.solarize:
        crop = cv2.LUT(crop, _SOLARIZED)
    return crop


def jitter_colors(crop: Image, jitter: JitterParams) -> Image:
    """Apply Pillow's enhancers and torchvision's hue shift, one after the other in the order of `jitter`."""
    for op in jitter.order:
        if op == BRIGHTNESS:
            crop = _blend(crop, crop, jitter.brightness, 0.0)
        elif op == CONTRAST:
            mean = round(float(np.dot(cv2.mean(crop)[:3], np.array(GRAY_WEIGHTS, np.float32))))
            crop = _blend(crop, crop, jitter.contrast, 0.0, offset=mean * (1 - jitter.contrast))
        elif op == SATURATION:
            crop = _blend(crop, _gray(crop), jitter.saturation, 1 - jitter.saturation)
        else:
            hsv = cv2.cvtColor(crop, cv2.COLOR_RGB2HSV_FULL)  # FULL: a turn is 256 levels
            hue = cv2.extractChannel(hsv, 0) + np.uint8(jitter.hue_levels % 256)  # goes round at 256
            crop = cv2.cvtColor(cv2.insertChannel(hue, hsv, 0), cv2.COLOR_HSV2RGB_FULL)
    return crop


def _blend(a: Image, b: Image, a_weight: float, b_weight: float, offset: float = 0.0) -> Image:
    """a * a_weight + b * b_weight + offset, clipped to 0 to 255, rounded down to whole levels as Pillow does."""
    # OpenCV rounds. The thousandth keeps results that are whole numbers already.
    return cv2.addWeighted(a, a_weight, b, b_weight, offset - 0.499)


def _gray(crop: Image) -> Image:
    return cv2.cvtColor(cv2.cvtColor(crop, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
