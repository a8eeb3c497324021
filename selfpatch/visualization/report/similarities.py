"""Cosine similarity of every patch of some images to every other one, in a byte each: to click on in the page."""

import base64
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from selfpatch.output.atomic_files import atomic_write
from selfpatch.visualization.report.earlier_pictures import data_uri
from selfpatch.visualization.sheet import EncodedImage

# Pairs of patches, a byte each: an image is left out where all together have more. Two images of 28 x 28 patches fit.
MAX_PAIRS = 1_250_000
IMAGE_WIDTH = 384
SIMILARITIES = "similarities.json"
MAX_FILE_BYTES = 4_000_000


def similarities(images: Sequence[EncodedImage]) -> dict[str, Any]:
    """All pairs of patches of as many images as fit; of large grids, means of 2 x 2 patches.

    Returns:
        `images` (name, rows, columns, picture as a data URI), `low` (the cosine that byte 0 stands for; 255 is 1) and
        `pairs`: the upper triangle of the matrix over all patches of all images, row by row, in base64.
    """
    maps = [image.tokens.patch_tokens[0].float().cpu().unflatten(0, image.tokens.grid_size) for image in images]
    while num_pairs(maps[:1]) > MAX_PAIRS:
        maps = [halved(token_map) for token_map in maps]
    while num_pairs(maps) > MAX_PAIRS:
        maps.pop()
    low, pairs = quantized(torch.cat([token_map.flatten(0, 1) for token_map in maps]))
    return {
        "images": [
            {
                "name": image.name,
                "rows": token_map.shape[0],
                "columns": token_map.shape[1],
                "picture": data_uri(picture_of(image.pixels)),
            }
            for image, token_map in zip(images, maps, strict=False)
        ],
        "low": low,
        "pairs": base64.b64encode(pairs.tobytes()).decode("ascii"),
    }


def num_pairs(maps: Sequence[Float[Tensor, "_r _s D"]]) -> int:
    count = sum(token_map.shape[0] * token_map.shape[1] for token_map in maps)
    return count * (count + 1) // 2


def halved(token_map: Float[Tensor, "_r _s D"]) -> Float[Tensor, "_t _u D"]:
    """Means of 2 x 2 patches, of fewer at the border."""
    pooled = F.avg_pool2d(token_map.permute(2, 0, 1)[None], 2, ceil_mode=True, count_include_pad=False)
    return pooled[0].permute(1, 2, 0)


def quantized(tokens: Float[Tensor, "N D"]) -> tuple[float, UInt8[np.ndarray, " M"]]:
    """The lowest cosine, and the upper triangle with the diagonal: 0 for the lowest, 255 for 1."""
    unit = F.normalize(tokens, dim=-1)
    cosine = (unit @ unit.T).clamp(-1, 1).nan_to_num(0.0).numpy()
    upper = cosine[np.triu_indices(len(cosine))]
    low = float(min(upper.min(), 0.999))
    return low, np.round(255 * (upper - low) / (1 - low)).clip(0, 255).astype(np.uint8)


def picture_of(pixels: UInt8[np.ndarray, "H W 3"]) -> bytes:
    height, width = pixels.shape[:2]
    scale = min(1.0, IMAGE_WIDTH / width)
    resized = cv2.resize(pixels, (round(width * scale), max(1, round(height * scale))), interpolation=cv2.INTER_AREA)
    _, jpeg = cv2.imencode(".jpg", cv2.cvtColor(resized, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 85])
    return jpeg.tobytes()


def write_similarities(images: Sequence[EncodedImage], path: Path) -> None:
    """Names that are not UTF-8 are kept as escapes."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(similarities(images)), encoding="utf-8")


def read_similarities(path: Path) -> dict[str, Any] | None:
    """What `write_similarities` wrote; None: nothing, or something else."""
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            return None
        found = json.loads(path.read_text(encoding="utf-8"))
        num_patches = sum(int(image["rows"]) * int(image["columns"]) for image in found["images"])
        num_bytes = len(base64.b64decode(found["pairs"], validate=True))
        pictures = [str(image["picture"]).startswith("data:image/jpeg;base64,") for image in found["images"]]
        is_whole = num_bytes == num_patches * (num_patches + 1) // 2 and isinstance(found["low"], float)
        return found if is_whole and all(pictures) else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
