"""The pictures of a backbone, as the command and the training loop write them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Real
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from selfpatch.backbones.backbone import Backbone, Tokens
from selfpatch.config.objectives.patch import PatchConfig
from selfpatch.data.augmentation.normalize import normalize
from selfpatch.data.shown_colors import shown_colors
from selfpatch.errors import UserError
from selfpatch.output.atomic_files import atomic_write
from selfpatch.visualization.attention_map import draw_attention_maps
from selfpatch.visualization.patch_pca import draw_patch_pca
from selfpatch.visualization.positives import draw_positives, positives_config
from selfpatch.visualization.report.similarities import SIMILARITIES, write_similarities
from selfpatch.visualization.sheet import EncodedImage
from selfpatch.visualization.similarity_map import draw_similarity_maps, patch_at

# How many of the images are in each picture; a matrix or a row of windows is not readable with more.
NUM_PCA, NUM_SIMILARITY, NUM_POSITIVES, NUM_ATTENTION = 12, 4, 3, 4
# In longer images the long side counts: else their patches would not fit on paper, and all pairs of them not in memory.
MAX_ASPECT = 3


def visualize(
    backbone: Backbone,
    images: Sequence[tuple[str, Real[np.ndarray, "_h _w _c"]]],
    out_dir: Path,
    *,
    image_size: int | None = None,
    pixel: tuple[int, int] | None = None,
    positives: PatchConfig | None = None,
    for_report: bool = False,
) -> list[Path]:
    """Write pca.png, similarity.png, positives.png and, where there is a class token, attention.png.

    Args:
        backbone: in evaluation mode.
        images: (name, pixels); the first of them are shown.
        image_size: short side in pixels of the images as the backbone gets them; None: twice what it was built for. The
            long side is at most three times that.
        pixel: (x, y) in the first image, the patch that others are compared with; None: the middle of each image.
        positives: how positives are found; None: as in the paper.
        for_report: write similarities.json too, of every patch to every other, which the report page colors by.

    Raises:
        UserError: no images, an image_size of less than a window of patches, or a pixel outside the image.
    """
    if not images:
        raise UserError("no images to make pictures of; give a folder with at least one")
    assert not backbone.training
    positives = positives or positives_config()
    image_size = image_size or 2 * min(backbone.image_size)
    if image_size < positives.min_grid_side * max(backbone.patch_size):
        raise UserError(
            f"image-size is {image_size} px, less than {positives.min_grid_side} patches of {max(backbone.patch_size)} "
            "px, the window in which positives are sought; make it larger"
        )
    encoded = [
        encode(backbone, name, pixels, image_size, min_patches=positives.min_grid_side)
        for name, pixels in images[:NUM_PCA]
    ]
    similarity = encoded[:NUM_SIMILARITY]
    if pixel is None:
        grids = [image.tokens.grid_size for image in similarity]
        queries = [(index, (rows // 2, columns // 2)) for index, (rows, columns) in enumerate(grids)]
    else:
        queries = [(0, patch_at(pixel, images[0][1].shape[:2], encoded[0].tokens.grid_size))]

    pictures = {
        "pca": draw_patch_pca(encoded),
        "similarity": draw_similarity_maps(similarity, queries),
        "positives": draw_positives(_for_positives(backbone, encoded[:NUM_POSITIVES], positives.layer), positives),
    }
    if backbone.has_cls_token:
        attended = encoded[:NUM_ATTENTION]
        attention = [_attention(backbone, image) for image in attended]
        pictures["attention"] = draw_attention_maps(attended, attention)

    paths = _save(pictures, out_dir)
    if for_report:
        write_similarities(similarity, out_dir / SIMILARITIES)
    return paths


def _save(pictures: dict[str, Image.Image], out_dir: Path) -> list[Path]:
    out_dir.mkdir(parents=True, exist_ok=True)
    paths = [out_dir / f"{name}.png" for name in pictures]
    for path, picture in zip(paths, pictures.values(), strict=True):
        with atomic_write(path) as temporary:
            picture.save(temporary, format="PNG", compress_level=3)  # half of the time of 6, a tenth larger
    return paths


@torch.no_grad()
def encode(
    backbone: Backbone, name: str, pixels: Real[np.ndarray, "H W C"], image_size: int, *, min_patches: int
) -> EncodedImage:
    """Resized to this short side, as near as whole patches, at least `min_patches` a side, allow; its shape is kept."""
    height, width = pixels.shape[:2]
    scale = min(image_size / min(height, width), MAX_ASPECT * image_size / max(height, width))
    patch_height, patch_width = backbone.patch_size
    rows = max(min_patches, round(height * scale / patch_height))
    columns = max(min_patches, round(width * scale / patch_width))
    resized = _resize(pixels, (rows * patch_height, columns * patch_width))
    shown = shown_colors(resized, backbone.pixels.shown_channels)
    return EncodedImage(name, shown, backbone(_to_input(backbone, resized)), resized)


def _resize(pixels: Real[np.ndarray, "H W C"], size: tuple[int, int]) -> Real[np.ndarray, "R S C"]:
    """Bicubic and antialiased, to (rows, columns)."""
    if pixels.dtype == np.uint8 and pixels.shape[2] == 3:
        return np.array(Image.fromarray(pixels).resize((size[1], size[0]), Image.Resampling.BICUBIC))
    planes = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    return F.interpolate(planes, size, mode="bicubic", antialias=True)[0].permute(1, 2, 0).contiguous().numpy()


@torch.no_grad()
def _for_positives(backbone: Backbone, images: list[EncodedImage], layer: int | None) -> list[EncodedImage]:
    """With the tokens in which a run finds positives: those before a borrowed norm, or of a layer."""

    def tokens_of(image: EncodedImage) -> Tokens:
        pixels = _to_input(backbone, _values(image))
        if layer is None:
            return backbone.pre_norm_tokens(pixels)
        (feature_map,) = backbone.forward_intermediates(pixels, [layer])
        return image.tokens._replace(patch_tokens=feature_map.flatten(2).transpose(1, 2))

    return [image._replace(tokens=tokens_of(image)) for image in images]


@torch.no_grad()
def _attention(backbone: Backbone, image: EncodedImage) -> Float[Tensor, "h R S"]:
    return backbone.cls_attention(_to_input(backbone, _values(image)))[0]


def _values(image: EncodedImage) -> Real[np.ndarray, "H W C"]:
    return image.pixels if image.values is None else image.values


def _to_input(backbone: Backbone, pixels: Real[np.ndarray, "H W C"]) -> Float[Tensor, "1 C H W"]:
    device = next(backbone.parameters()).device
    return normalize(torch.from_numpy(pixels).permute(2, 0, 1)[None].to(device), backbone.mean, backbone.std)
