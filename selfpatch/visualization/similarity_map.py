"""Similarity of every patch, of one or several images, to one chosen patch."""

import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image, ImageDraw
from torch import Tensor

from selfpatch.errors import UserError
from selfpatch.visualization.sheet import (
    ColorBar,
    EncodedImage,
    Panel,
    cell_size,
    draw_sheet,
    heat,
    image_panel,
    map_panel,
    mark_patch,
)

MARK = (80, 255, 120)


def similarity_map(query: Float[Tensor, " D"], token_map: Float[Tensor, "R S D"]) -> Float[Tensor, "R S"]:
    """Cosine similarity of every patch to `query`, in [-1, 1]."""
    return F.normalize(token_map.float(), dim=-1) @ F.normalize(query.float(), dim=-1)


def patch_at(pixel: tuple[int, int], image_size: tuple[int, int], grid_size: tuple[int, int]) -> tuple[int, int]:
    """(row, column) of the patch under a pixel (x, y) of an image of (rows, columns) pixels.

    Raises:
        UserError: the pixel is not in the image.
    """
    (x, y), (height, width) = pixel, image_size
    if not (0 <= x < width and 0 <= y < height):
        raise UserError(
            f"pixel ({x}, {y}) is outside the image, which is {width} wide and {height} high; x comes first"
        )
    return y * grid_size[0] // height, x * grid_size[1] // width


def draw_similarity_maps(images: list[EncodedImage], queries: list[tuple[int, tuple[int, int]]]) -> Image.Image:
    """One row per query (index of an image, row and column of a patch): framed, then the maps of all images."""
    token_maps = [image.tokens.patch_tokens[0].unflatten(0, image.tokens.grid_size) for image in images]
    maps = [
        [similarity_map(token_maps[index][patch], token_map).cpu().numpy() for token_map in token_maps]
        for index, patch in queries
    ]
    low = min(float(values.min()) for row in maps for values in row)
    rows = []
    for (index, patch), row in zip(queries, maps, strict=True):
        grid_size = images[index].tokens.grid_size
        query_panel = image_panel(images[index].pixels, grid_size)
        mark_patch(ImageDraw.Draw(query_panel), patch, cell_size(grid_size), MARK)
        panels = [Panel(query_panel, f"patch in row {patch[0]}, column {patch[1]}")]
        for other, values in enumerate(row):
            panel = map_panel(heat(values, low, 1.0))
            if other == index:
                mark_patch(ImageDraw.Draw(panel), patch, cell_size(grid_size), MARK)
            panels.append(Panel(panel, images[other].name))
        rows.append(panels)
    return draw_sheet(
        "Which patches are similar to this one",
        "A row a question: the framed patch on the left, and the similarity of every patch of every image to it.",
        rows,
        ColorBar("cosine similarity to the framed patch", low, 1.0),
    )
