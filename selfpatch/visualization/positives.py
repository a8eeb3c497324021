"""What SelfPatch teaches: for chosen patches, the neighbourhood and the positives that were picked from it."""

from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw

from selfpatch.backbones.backbone import Tokens
from selfpatch.config import ObjectivesConfig, SelfPatchConfig
from selfpatch.config.objectives.patch import PatchConfig
from selfpatch.objectives.selfpatch import find_positives, neighborhood
from selfpatch.visualization.sheet import (
    PAPER,
    EncodedImage,
    Panel,
    cell_size,
    draw_sheet,
    image_panel,
    mark_patch,
    outlined_text,
)

CHOSEN, PICKED = (255, 210, 40), (80, 255, 120)
# Side in pixels of a window that is drawn large.
WINDOW_SIDE = 216


def positives_config(objectives: ObjectivesConfig | None = None) -> PatchConfig:
    """Settings by which a run finds positives; those of the paper where no objective of it does."""
    return (objectives and objectives.selfpatch) or SelfPatchConfig()


class Neighborhood(NamedTuple):
    """A patch, by its index, and what SelfPatch finds around it."""

    patch: int
    window: list[int | None]  # row by row without the patch itself; None: beyond the border
    positives: list[int]  # best first
    similarity: list[float]  # of each positive


def neighborhoods(tokens: Tokens, patches: list[int], config: PatchConfig) -> list[Neighborhood]:
    """As the objective finds them, in the first image of `tokens`."""
    indices, exists = neighborhood(tokens.grid_size, config.window_size, config.padding_mode)
    positives, similarity = find_positives(tokens, config)
    return [
        Neighborhood(
            patch,
            [
                index if there else None
                for index, there in zip(indices[patch].tolist(), exists[patch].tolist(), strict=True)
            ],
            positives[0, patch].tolist(),
            similarity[0, patch].tolist(),
        )
        for patch in patches
    ]


def spread_patches(grid_size: tuple[int, int]) -> list[int]:
    """Five patches: the middles of the four quarters, and the last one, in the corner, where the border shows."""
    rows, columns = grid_size
    quarters = [((rows - 1) * i // 4, (columns - 1) * j // 4) for i in (1, 3) for j in (1, 3)]
    return [row * columns + column for row, column in quarters] + [rows * columns - 1]


def draw_positives(images: list[EncodedImage], config: PatchConfig, patches: list[int] | None = None) -> Image.Image:
    """A row an image: the image with the chosen patches, then each window enlarged, with the similarity of positives.

    `patches` are indices, the same in every image; None: `spread_patches`.
    """
    window = config.window_size
    rows = []
    for image in images:
        found = neighborhoods(image.tokens, patches or spread_patches(image.tokens.grid_size), config)
        row = [Panel(_draw_overview(image, found, config), image.name)]
        for number, around in enumerate(found if isinstance(window, int) else [], start=1):
            position = divmod(around.patch, image.tokens.grid_size[1])
            row.append(Panel(_draw_window(image, around, config), f"{number}: row {position[0]}, column {position[1]}"))
        rows.append(row)
    return draw_sheet(
        "The positives that SelfPatch picks",
        f"Yellow: a patch. Green: the {config.num_positives} of its neighbours in a window of {window} x "
        f"{window} that are most similar to it, with their cosine similarity;\n"
        + {
            "circular": "beyond a border the window goes on at the opposite side.",
            "none": "beyond a border there is nothing.",
        }[config.padding_mode]
        if isinstance(window, int)
        else f"Yellow: patches. Green: the {config.num_positives} of all other patches of the image that are most "
        "similar to one of them.",
        rows,
    )


def _draw_overview(image: EncodedImage, found: list[Neighborhood], config: PatchConfig) -> Image.Image:
    columns, cell = image.tokens.grid_size[1], cell_size(image.tokens.grid_size)
    panel = image_panel(image.pixels, image.tokens.grid_size)
    draw = ImageDraw.Draw(panel)
    for around in found:
        for patch in around.positives:
            mark_patch(draw, divmod(patch, columns), cell, PICKED, width=1)
    for number, around in enumerate(found, start=1):
        row, column = divmod(around.patch, columns)
        mark_patch(draw, (row, column), cell, CHOSEN)
        # Left of the window, which stays free to be looked at.
        reach = config.window_size // 2 if isinstance(config.window_size, int) else 0
        outlined_text(draw, (max(8, (column - reach) * cell - 8), (row + 0.5) * cell), str(number))
    return panel


def _draw_window(image: EncodedImage, around: Neighborhood, config: PatchConfig) -> Image.Image:
    """The patches of the window side by side as the objective sees them, wherever in the image they are."""
    side = config.window_size
    assert isinstance(side, int)
    cell = WINDOW_SIDE // side
    panel = Image.new("RGB", (side * cell, side * cell), PAPER)
    draw = ImageDraw.Draw(panel)
    middle = len(around.window) // 2
    places = {place: divmod(place, side) for place in range(side * side)}
    window = [*around.window[:middle], around.patch, *around.window[middle:]]
    for place, patch in enumerate(window):
        if patch is not None:
            row, column = places[place]
            pixels = Image.fromarray(_patch_pixels(image, patch)).resize((cell, cell), Image.Resampling.BICUBIC)
            panel.paste(pixels, (column * cell, row * cell))
    for patch, similarity in zip(around.positives, around.similarity, strict=True):
        row, column = places[window.index(patch)]
        mark_patch(draw, (row, column), cell, PICKED)
        outlined_text(draw, ((column + 0.5) * cell, (row + 0.5) * cell), f"{similarity:.2f}")
    mark_patch(draw, places[middle], cell, CHOSEN)
    return panel


def _patch_pixels(image: EncodedImage, patch: int) -> UInt8[np.ndarray, "h w 3"]:
    (height, width, _), (rows, columns) = image.pixels.shape, image.tokens.grid_size
    row, column = divmod(patch, columns)
    height, width = height // rows, width // columns
    return image.pixels[row * height : (row + 1) * height, column * width : (column + 1) * width]
