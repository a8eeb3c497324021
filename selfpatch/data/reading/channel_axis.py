"""Which axis of a stored array counts channels: the files of others have it first or last."""

import numpy as np
from jaxtyping import Shaped

from selfpatch.config.pixel_format import MAX_CHANNELS
from selfpatch.data.reading.image_file import UnreadableImage


def channel_axis(shape: tuple[int, ...]) -> int | None:
    """The axis of a three-dimensional shape that counts channels; None: a shape of two dimensions has none.

    Raises:
        UnreadableImage: no axis, or no single axis, is short enough.
    """
    if len(shape) == 2:
        return None
    if len(shape) == 3:
        ends = [axis for axis in (0, 2) if shape[axis] <= MAX_CHANNELS]
        if len(ends) == 2 and shape[0] != shape[2]:  # an image of a few rows: the shorter one
            ends = [int(np.argmin([shape[0], shape[1] + MAX_CHANNELS, shape[2]]))]
        if len(ends) == 1:
            return ends[0]
    raise UnreadableImage(
        f"an array of shape {tuple(shape)}; images are rows x columns, or with up to {MAX_CHANNELS} channels as the "
        "first or the last axis"
    )


def rows_columns_channels(shape: tuple[int, ...], axis: int | None) -> tuple[int, int, int]:
    """The shape that `channels_last` gives."""
    if axis is None:
        return shape[0], shape[1], 1
    rows, columns = (length for place, length in enumerate(shape) if place != axis)
    return rows, columns, shape[axis]


def channels_last(values: Shaped[np.ndarray, "..."], axis: int | None) -> Shaped[np.ndarray, "H W C"]:
    return values[..., None] if axis is None else np.moveaxis(values, axis, -1)
