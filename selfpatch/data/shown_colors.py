"""Images of any channels and depth as people look at them: three channels, each stretched to its own range."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Real, UInt8

# Percentiles of a channel that become black and white: a few bright pixels must not darken all others.
BLACK, WHITE = 2, 98


def shown_colors(image: Real[np.ndarray, "H W C"], channels: Sequence[int] | None = None) -> UInt8[np.ndarray, "H W 3"]:
    """8-bit RGB of an image; 8-bit RGB itself stays as it is.

    Args:
        channels: three of them, from 0, to show as red, green and blue; None: the first three, or the only one as gray.
    """
    num_channels = image.shape[2]
    if channels is None:
        if image.dtype == np.uint8 and num_channels == 3:
            return image
        channels = [min(channel, num_channels - 1) for channel in range(3)]
    planes = image[..., list(channels)].astype(np.float32)
    low, high = np.percentile(planes.reshape(-1, 3), (BLACK, WHITE), axis=0).astype(np.float32)
    scaled = (planes - low) / np.where(high > low, high - low, 1)
    return np.rint(255 * scaled.clip(0, 1)).astype(np.uint8)
