"""Made-up photographs, and how far two images are apart."""

import cv2
import numpy as np

from selfpatch.data.augmentation.params import ColorParams

UNCHANGED = ColorParams(jitter=None, grayscale=False, blur_sigma=None, solarize=False)


def photograph(seed: int, rows: int = 375, columns: int = 500) -> np.ndarray:
    """Made up: colour at every scale, and some grain."""
    rng = np.random.default_rng(seed)
    layers = [
        weight * cv2.resize(rng.random((size, size, 3)), (columns, rows), interpolation=cv2.INTER_CUBIC)
        for size, weight in ((4, 1.0), (12, 0.6), (40, 0.3), (120, 0.12))
    ]
    smooth = np.sum(layers, axis=0)
    smooth = 255 * (smooth - smooth.min()) / np.ptp(smooth)
    return np.clip(smooth + rng.normal(0, 5, smooth.shape), 0, 255).astype(np.uint8)


PHOTOGRAPHS = [photograph(seed) for seed in range(4)]


def difference(a: np.ndarray, b: np.ndarray) -> float:
    assert a.shape == b.shape
    assert a.dtype == b.dtype == np.uint8
    return float(np.abs(a.astype(int) - b.astype(int)).mean())
