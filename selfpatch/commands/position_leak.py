"""Position moments of a backbone's patches over images, for scores during training, `export` and benchmarks."""

from collections.abc import Iterable

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, ImageOps

from selfpatch.backbones.backbone import Backbone
from selfpatch.backbones.position_removal import PositionMoments
from selfpatch.evaluation.features import eval_mode, normalized


def position_moments(
    backbone: Backbone, images: Iterable[tuple[str, UInt8[np.ndarray, "_h _w 3"]]]
) -> tuple[PositionMoments, PositionMoments]:
    """Moments over every other image and over the rest, so that what is fitted to the first is held to the second.

    Images are cut around the middle and resized to what the backbone was built for.
    """
    device = next(backbone.parameters()).device
    halves = PositionMoments(backbone.embed_dim), PositionMoments(backbone.embed_dim)
    with eval_mode(backbone), torch.no_grad():
        for index, (_, pixels) in enumerate(images):
            shown = ImageOps.fit(Image.fromarray(pixels), backbone.image_size[::-1], Image.Resampling.BICUBIC)
            batch = torch.from_numpy(np.array(shown))[None].to(device)
            halves[index % 2].add(backbone(normalized(batch, backbone.mean, backbone.std)))
    return halves
