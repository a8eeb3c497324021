"""Position moments of a backbone's patches over images, for scores during training, `export` and benchmarks."""

from collections.abc import Iterable

import numpy as np
import torch
from jaxtyping import Real
from PIL import Image, ImageOps

from selfpatch.backbones.backbone import Backbone
from selfpatch.backbones.position_removal import PositionMoments
from selfpatch.evaluation.features import eval_mode, normalized, resize_image


def position_moments(
    backbone: Backbone, images: Iterable[tuple[str, Real[np.ndarray, "_h _w _c"]]]
) -> tuple[PositionMoments, PositionMoments]:
    """Moments over every other image and over the rest, so that what is fitted to the first is held to the second.

    Images are cut around the middle and resized to what the backbone was built for.
    """
    device = next(backbone.parameters()).device
    halves = PositionMoments(backbone.embed_dim), PositionMoments(backbone.embed_dim)
    with eval_mode(backbone), torch.no_grad():
        for index, (_, pixels) in enumerate(images):
            batch = torch.from_numpy(_fit(pixels, backbone.image_size))[None].to(device)
            halves[index % 2].add(backbone(normalized(batch, backbone.mean, backbone.std)))
    return halves


def _fit(pixels: Real[np.ndarray, "_h _w C"], size: tuple[int, int]) -> Real[np.ndarray, "R S C"]:
    """The largest middle part of this aspect, resized to (rows, columns)."""
    if pixels.dtype == np.uint8 and pixels.shape[2] == 3:
        return np.array(ImageOps.fit(Image.fromarray(pixels), size[::-1], Image.Resampling.BICUBIC))
    factor = min(side / wanted for side, wanted in zip(pixels.shape, size, strict=False))
    rows, columns = (max(int(factor * wanted), 1) for wanted in size)
    top, left = (pixels.shape[0] - rows) // 2, (pixels.shape[1] - columns) // 2
    part = np.ascontiguousarray(pixels[top : top + rows, left : left + columns])
    return resize_image(part, size, mode="bicubic")
