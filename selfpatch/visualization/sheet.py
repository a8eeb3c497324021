"""Panels with captions on white paper: title above, colour bar below. All pictures of the package share this look."""

from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Real, UInt8
from PIL import Image, ImageDraw, ImageFont

from selfpatch.backbones.backbone import Tokens
from selfpatch.output.printable import printable

MARGIN, GAP, LINE = 28, 12, 22
INK, FAINT_INK, PAPER = (32, 32, 32), (110, 110, 110), (255, 255, 255)
# Pixels that the longer side of a panel has, about: a patch is a whole number of them.
PANEL_SIDE = 256
BAR_WIDTH, BAR_HEIGHT = 260, 14


class EncodedImage(NamedTuple):
    """An image as it is shown, and what the backbone made of it (a batch of one).

    Args:
        values: what the backbone got, where that is more than `pixels` show.
    """

    name: str
    pixels: UInt8[np.ndarray, "H W 3"]
    tokens: Tokens
    values: Real[np.ndarray, "H W C"] | None = None


class Panel(NamedTuple):
    image: Image.Image
    caption: str = ""


class ColorBar(NamedTuple):
    label: str
    low: float
    high: float


def draw_sheet(title: str, subtitle: str, rows: list[list[Panel]], bar: ColorBar | None = None) -> Image.Image:
    """The panels of a row stand side by side; in all rows those of one column begin at the same place."""
    title, subtitle = printable(title, keep="\\"), printable(subtitle, keep="\\\n")
    widths = [0] * max(map(len, rows))
    for row in rows:
        for column, panel in enumerate(row):
            widths[column] = max(widths[column], panel.image.width)
    heights = [max(panel.image.height for panel in row) + LINE * any(panel.caption for panel in row) for row in rows]
    title_font, font, caption_font = _font(20, bold=True), _font(13), _font(12)
    text_width = max(title_font.getlength(title), *map(font.getlength, subtitle.splitlines()))
    width = max(sum(widths) + GAP * (len(widths) - 1), round(text_width))
    head = 34 + 19 * len(subtitle.splitlines()) + GAP
    foot = BAR_HEIGHT + 2 * LINE if bar else 0
    sheet = Image.new(
        "RGB", (width + 2 * MARGIN, head + sum(heights) + GAP * (len(rows) - 1) + foot + 2 * MARGIN), PAPER
    )
    draw = ImageDraw.Draw(sheet)
    draw.text((MARGIN, MARGIN), title, INK, title_font)
    draw.multiline_text((MARGIN, MARGIN + 32), subtitle, FAINT_INK, font, spacing=4)
    top = MARGIN + head
    for row, height in zip(rows, heights, strict=True):
        left = MARGIN
        for panel, panel_width in zip(row, widths, strict=False):
            sheet.paste(panel.image, (left, top))
            caption = _shortened(printable(panel.caption, keep="\\"), panel.image.width, caption_font)
            draw.text((left, top + panel.image.height + 5), caption, FAINT_INK, caption_font)
            left += panel_width + GAP
        top += height + GAP
    if bar:
        _draw_bar(sheet, (MARGIN, top + GAP), bar)
    return sheet


def wrap(panels: list[Panel], max_width: int = 1600) -> list[list[Panel]]:
    """Panels in reading order, as many columns as fit."""
    widest = max(panel.image.width for panel in panels)
    columns = max(1, (max_width + GAP) // (widest + GAP))
    return [panels[i : i + columns] for i in range(0, len(panels), columns)]


def cell_size(grid_size: tuple[int, int]) -> int:
    """Side in pixels of a patch in a panel."""
    return max(1, PANEL_SIDE // max(grid_size))


def image_panel(pixels: UInt8[np.ndarray, "H W 3"], grid_size: tuple[int, int]) -> Image.Image:
    cell = cell_size(grid_size)
    return Image.fromarray(pixels).resize((grid_size[1] * cell, grid_size[0] * cell), Image.Resampling.LANCZOS)


def map_panel(colors: UInt8[np.ndarray, "R S 3"]) -> Image.Image:
    """One flat square per patch: no smoothness that the patches do not have."""
    rows, columns, _ = colors.shape
    cell = cell_size((rows, columns))
    return Image.fromarray(colors).resize((columns * cell, rows * cell), Image.Resampling.NEAREST)


def side_by_side(left: Image.Image, right: Image.Image) -> Image.Image:
    both = Image.new("RGB", (left.width + 2 + right.width, max(left.height, right.height)), PAPER)
    both.paste(left, (0, 0))
    both.paste(right, (left.width + 2, 0))
    return both


def heat(values: Float[np.ndarray, "*shape"], low: float, high: float) -> UInt8[np.ndarray, "*shape 3"]:
    """Dark for `low`, bright for `high`, evenly to the eye."""
    scaled = (values - low) / max(high - low, 1e-9)
    import matplotlib  # here, as a run draws its first picture long after its start

    return matplotlib.colormaps["magma"](scaled.clip(0, 1), bytes=True)[..., :3]


def mark_patch(
    draw: ImageDraw.ImageDraw, patch: tuple[int, int], cell: int, color: tuple[int, int, int], width: int = 2
) -> None:
    """A frame around a patch (row, column), on a dark one, so that it is seen on any image."""
    left, top = patch[1] * cell, patch[0] * cell
    box = (left, top, left + cell - 1, top + cell - 1)
    draw.rectangle((box[0] - 1, box[1] - 1, box[2] + 1, box[3] + 1), outline=INK, width=width + 2)
    draw.rectangle(box, outline=color, width=width)


def outlined_text(draw: ImageDraw.ImageDraw, middle: tuple[float, float], text: str) -> None:
    """White on a dark rim, so that it is read on any image."""
    draw.text(middle, text, PAPER, _font(13, bold=True), anchor="mm", stroke_width=2, stroke_fill=INK)


def _draw_bar(sheet: Image.Image, position: tuple[int, int], bar: ColorBar) -> None:
    left, top = position
    gradient = heat(np.linspace(0, 1, BAR_WIDTH)[None], 0, 1)
    sheet.paste(Image.fromarray(gradient).resize((BAR_WIDTH, BAR_HEIGHT)), (left, top))
    draw, font = ImageDraw.Draw(sheet), _font(12)
    draw.text((left, top + BAR_HEIGHT + 4), f"{bar.low:.2f}", FAINT_INK, font)
    draw.text((left + BAR_WIDTH, top + BAR_HEIGHT + 4), f"{bar.high:.2f}", FAINT_INK, font, anchor="ra")
    draw.text((left + BAR_WIDTH + GAP, top - 1), bar.label, FAINT_INK, font)


def _shortened(text: str, width: int, font: ImageFont.FreeTypeFont) -> str:
    """Without its middle where it is too long: names differ at their ends."""
    kept = len(text)
    shortened = text
    while font.getlength(shortened) > width and kept > 2:
        kept -= 1
        shortened = f"{text[: kept // 2]}…{text[len(text) - (kept - kept // 2) :]}"
    return shortened


@cache
def _font(size: int, *, bold: bool = False) -> ImageFont.FreeTypeFont:
    # Matplotlib's own copy, the same on every machine, with letters of many scripts.
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    import matplotlib

    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name, size)
