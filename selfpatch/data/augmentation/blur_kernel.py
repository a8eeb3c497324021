"""Kernels of Pillow's Gaussian blur, of which DINO's augmentation makes use: three box filters in a row."""

from typing import Any

import numpy as np
from jaxtyping import Float


def blur_kernel(sigma: float) -> Float[np.ndarray, "taps"]:
    """Pillow's Gaussian blur in one dimension: three box filters in a row, of variance sigma**2 / 3 each.

    Unlike a sampled Gaussian it has the right variance however small sigma is.
    """
    n, w = _box(sigma)
    box = np.array([w] + [1.0] * (2 * int(n) + 1) + [w])
    kernel = np.convolve(np.convolve(box, box), box)
    return (kernel / kernel.sum()).astype(np.float32)


def blur_kernels(sigmas: Float[np.ndarray, "b"]) -> Float[np.ndarray, "b taps"]:
    """Many at once, all as long as the longest."""
    n, w = _box(sigmas[:, None])
    half_width = int(n.max()) + 1
    offsets = np.abs(np.arange(-half_width, half_width + 1))
    boxes = np.where(offsets <= n, 1.0, np.where(offsets == n + 1, w, 0.0))
    num_taps = 6 * half_width + 1
    kernels = np.fft.irfft(np.fft.rfft(boxes, num_taps) ** 3, num_taps)
    return (kernels / kernels.sum(axis=1, keepdims=True)).astype(np.float32)


def _box(sigma: Any) -> tuple[Any, Any]:
    """(n, w) of a box filter of variance sigma**2 / 3, with weight 1 at -n..n and w < 1 at the two ends beyond.

    Its variance
        (n (n+1) (2n+1) / 3 + 2 w (n+1)**2) / (2n + 1 + 2w)
    solved for w gives the line below; n is the largest number that leaves w >= 0.
    """
    variance = sigma**2 / 3
    n = ((12 * variance + 1) ** 0.5 - 1) / 2 // 1
    return n, (2 * n + 1) * (3 * variance - n * (n + 1)) / (6 * ((n + 1) ** 2 - variance))
