"""Predictions for an image of any size from a model that sees windows of one size."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def window_starts(length: int, window: int, stride: int) -> list[int]:
    """First pixels of windows that cover `length`; the last one ends at the border, whatever its overlap."""
    last = max(length - window, 0)
    return [*range(0, last, stride), last]


def sliding_window(
    image: Float[Tensor, "3 H W"],
    predict: Callable[[Float[Tensor, "B 3 h w"]], Float[Tensor, "B C h w"]],
    *,
    window: tuple[int, int],
    stride: int,
    batch_size: int,
) -> Float[Tensor, "C H W"]:
    """The mean over all windows that see a pixel of what `predict` says of it.

    A side shorter than the window is filled up with 0, the mean colour of a normalised image. At most batch_size
    windows are predicted at once.
    """
    height, width = image.shape[1:]
    image = F.pad(image, (0, max(window[1] - width, 0), 0, max(window[0] - height, 0)))
    corners = [
        (top, left)
        for top in window_starts(height, window[0], stride)
        for left in window_starts(width, window[1], stride)
    ]
    total, num_windows = torch.zeros(()), image.new_zeros(image.shape[1:])
    for start in range(0, len(corners), batch_size):
        places = [
            (slice(top, top + window[0]), slice(left, left + window[1]))
            for top, left in corners[start : start + batch_size]
        ]
        predictions = predict(torch.stack([image[:, rows, columns] for rows, columns in places]))
        if start == 0:
            total = predictions.new_zeros(predictions.shape[1], *image.shape[1:])
        for (rows, columns), prediction in zip(places, predictions, strict=True):
            total[:, rows, columns] += prediction
            num_windows[rows, columns] += 1
    return (total / num_windows)[:, :height, :width]
