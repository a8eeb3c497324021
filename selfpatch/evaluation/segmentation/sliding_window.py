"""Sliding-window inference: predictions for an image of any size from windows of one size."""

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


class Windows(NamedTuple):
    """A few windows of an image, encoded."""

    places: list[tuple[slice, slice]]  # rows and columns of each
    encoded: Float[Tensor, "B ..."]


def window_starts(length: int, window: int, stride: int) -> list[int]:
    """First pixels of windows that cover `length`; the last one ends at the border, whatever its overlap."""
    last = max(length - window, 0)
    return [*range(0, last, stride), last]


def sliding_window(
    image: Float[Tensor, "_c H W"],
    predict: Callable[[Float[Tensor, "B _c h w"]], Float[Tensor, "B C h w"]],
    *,
    window: tuple[int, int],
    stride: int,
    batch_size: int,
) -> Float[Tensor, "C H W"]:
    """Mean of the predictions of all windows that contain a pixel; see `encode_windows`."""
    windows = encode_windows(image, predict, window=window, stride=stride, batch_size=batch_size)
    return merge_windows(windows, lambda predictions: predictions, (image.shape[1], image.shape[2]))


def encode_windows(
    image: Float[Tensor, "_c H W"],
    encode: Callable[[Float[Tensor, "B _c h w"]], Float[Tensor, "B ..."]],
    *,
    window: tuple[int, int],
    stride: int,
    batch_size: int,
) -> Iterator[Windows]:
    """At most batch_size windows at a time, until they cover the image.

    A side shorter than the window is filled up with 0, the mean color of a normalised image.
    """
    height, width = image.shape[1:]
    image = F.pad(image, (0, max(window[1] - width, 0), 0, max(window[0] - height, 0)))
    places = [
        (slice(top, top + window[0]), slice(left, left + window[1]))
        for top in window_starts(height, window[0], stride)
        for left in window_starts(width, window[1], stride)
    ]
    for start in range(0, len(places), batch_size):
        chosen = places[start : start + batch_size]
        yield Windows(chosen, encode(torch.stack([image[:, rows, columns] for rows, columns in chosen])))


def merge_windows(
    windows: Iterable[Windows],
    decode: Callable[[Float[Tensor, "B ..."]], Float[Tensor, "B C h w"]],
    size: tuple[int, int],
) -> Float[Tensor, "C H W"]:
    """Mean of what `decode` predicts over all windows that contain a pixel of an image of (rows, columns)."""
    total = num_windows = torch.zeros(())
    for places, encoded in windows:
        predictions = decode(encoded)
        if total.ndim == 0:
            sides = (max(side, window) for side, window in zip(size, predictions.shape[2:], strict=True))
            total = predictions.new_zeros(predictions.shape[1], *sides)
            num_windows = predictions.new_zeros(total.shape[1:])
        for (rows, columns), prediction in zip(places, predictions, strict=True):
            total[:, rows, columns] += prediction
            num_windows[rows, columns] += 1
    return (total / num_windows)[:, : size[0], : size[1]]
