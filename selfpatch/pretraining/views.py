"""Views: the crops of a batch as the networks take them, and the masks of the student's.

Made on the main process, part by part, so that of an accumulated batch no more than one part is held in float.
"""

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Real
from torch import Tensor

from selfpatch.config import CropsConfig
from selfpatch.data.augmentation.crops import Crops
from selfpatch.data.augmentation.device_augmentation import apply_color_batch
from selfpatch.data.augmentation.normalize import normalize
from selfpatch.data.augmentation.params import BatchedColorParams


class Views(NamedTuple):
    """Normalized crops on the device, and where the student's global crops are masked."""

    global_crops: Float[Tensor, "G B C H W"]
    local_crops: Float[Tensor, "L B C h w"] | None
    masks: Bool[Tensor, "G B N"] | None = None
    # If an objective needs them (see `Crops`):
    recolored_crops: Float[Tensor, "G B C H W"] | None = None
    global_boxes: Float[Tensor, "G B 4"] | None = None
    local_boxes: Float[Tensor, "L B 4"] | None = None

    @property
    def num_images(self) -> int:
        return self.global_crops.shape[1]


def make_views(
    crops: Crops,
    config: CropsConfig,
    device: torch.device,
    *,
    num_parts: int = 1,
    masks: Bool[Tensor, "G B N"] | None = None,
) -> Iterator[Views]:
    """Equal parts of the images, one after another: copied to the device, colors changed there if not yet, normalized.

    Args:
        crops: not normalized, and the parameters of color augmentation unless the workers have applied it.
    """
    bounds = [part * crops.num_images // num_parts for part in range(num_parts + 1)]
    for start, stop in itertools.pairwise(bounds):
        part = crops.slice_images(start, stop)
        recolored = part.global_crops if part.recolored_color is not None else part.recolored_crops
        yield Views(
            _finish(part.global_crops, part.global_color, config, device),
            None if part.local_crops is None else _finish(part.local_crops, part.local_color, config, device),
            None if masks is None else masks[:, start:stop].to(device, non_blocking=True),
            None if recolored is None else _finish(recolored, part.recolored_color, config, device),
            *(None if boxes is None else boxes.to(device) for boxes in (part.global_boxes, part.local_boxes)),
        )


def _finish(
    crops: Real[Tensor, "V B C H W"],
    color: BatchedColorParams | None,
    config: CropsConfig,
    device: torch.device,
) -> Float[Tensor, "V B C H W"]:
    crops = crops.to(device, non_blocking=True)
    if color is not None:
        crops = apply_color_batch(crops, color)
    return normalize(crops, *config.normalization)
