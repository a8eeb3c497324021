"""Patch tokens as colours: alike patches, in whatever image, get alike colours."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from selfpatch.visualization.sheet import EncodedImage, Panel, draw_sheet, image_panel, map_panel, side_by_side, wrap


class PatchPCA(NamedTuple):
    maps: list[Float[Tensor, "_r _s 3"]]  # red, green, blue in [0, 1]
    explained: Float[Tensor, "3"]  # share of the variance that each of the three holds


def patch_pca(token_maps: list[Float[Tensor, "_r _s D"]]) -> PatchPCA:
    """The first three principal components over the patches of all images together, as red, green and blue.

    A component's sign is free; here its largest weight is positive. Each goes from its 2nd percentile (0) to its 98th
    (1), so that a few odd patches do not take all the contrast.
    """
    tokens = torch.cat([tokens.flatten(0, 1) for tokens in token_maps]).cpu().double()
    centered = tokens - tokens.mean(dim=0)
    variances, components = torch.linalg.eigh(centered.T @ centered)  # ascending
    first = components[:, -3:].flip(-1)  # [D, 3]
    first = first * first.gather(0, first.abs().argmax(dim=0, keepdim=True)).sign()
    projected = centered @ first  # [all patches, 3]
    low, high = torch.quantile(
        projected[:: len(projected) // 1_000_000 + 1], torch.tensor([0.02, 0.98]).double(), dim=0
    )
    colors = ((projected - low) / (high - low).clamp_min(1e-12)).clamp(0, 1).float()
    maps = [
        part.unflatten(0, tokens.shape[:2])
        for part, tokens in zip(
            colors.split([len(tokens.flatten(0, 1)) for tokens in token_maps]), token_maps, strict=True
        )
    ]
    return PatchPCA(maps, (variances[-3:].flip(0) / variances.sum().clamp_min(1e-12)).float())


def draw_patch_pca(images: list[EncodedImage]) -> Image.Image:
    """Every image beside its map of colours."""
    token_maps = [image.tokens.patch_tokens[0].unflatten(0, image.tokens.grid_size) for image in images]
    pca = patch_pca(token_maps)
    panels = []
    for image, colors in zip(images, pca.maps, strict=True):
        color_map = map_panel((255 * colors).round().byte().numpy())
        panels.append(Panel(side_by_side(image_panel(image.pixels, image.tokens.grid_size), color_map), image.name))
    shares = ", ".join(f"{share:.0%}" for share in pca.explained.tolist())
    return draw_sheet(
        "Patch tokens as colours",
        f"First three principal components over all patches of these images as red, green and blue; they hold {shares} "
        "of the variance.\nEqual colours mean similar patches, across images as well.",
        wrap(panels),
    )
