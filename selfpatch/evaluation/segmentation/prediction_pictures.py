"""Figures of predictions: image, truth and prediction side by side in fixed colors, with a legend of classes below."""

import colorsys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from selfpatch.data.shown_colors import shown_colors
from selfpatch.evaluation.datasets.segmentation import SegmentationData
from selfpatch.evaluation.features import resize_image, resize_mask
from selfpatch.evaluation.metrics import IGNORED
from selfpatch.evaluation.segmentation.segmentation_scores import Prediction
from selfpatch.output.printable import printable

ROWS_PER_SHEET = 4
PANEL_WIDTH, MAX_PANEL_HEIGHT = 360, 360
MARGIN = 12
INK, FAINT_INK, PAPER, NOT_SCORED = (32, 32, 32), (110, 110, 110), (255, 255, 255), (225, 225, 225)
FONT_SIZE = 15

# Far apart in hue or lightness; most custom data sets have no more classes.
PALETTE = [
    (78, 121, 167),
    (242, 142, 43),
    (44, 160, 44),
    (214, 39, 40),
    (237, 201, 72),
    (148, 103, 189),
    (23, 190, 207),
    (227, 119, 194),
    (140, 86, 75),
    (0, 0, 117),
    (188, 189, 34),
    (0, 95, 75),
    (255, 152, 150),
    (128, 0, 64),
    (170, 255, 195),
    (106, 61, 154),
]


def class_color(index: int) -> tuple[int, int, int]:
    """RGB of a class, the same in all figures."""
    if index < len(PALETTE):
        return PALETTE[index]
    # Hues at steps of the golden ratio never repeat; lightness cycles through three values.
    lightness = (0.35, 0.55, 0.75)[index % 3]
    red, green, blue = colorsys.hls_to_rgb(index * 0.618034 % 1, lightness, 0.65)
    return round(255 * red), round(255 * green), round(255 * blue)


def write_prediction_sheets(predictions: Sequence[Prediction], data: SegmentationData, out_dir: Path) -> list[Path]:
    """OUT_DIR/predictions_1.png, predictions_2.png, ...; ROWS_PER_SHEET images on each."""
    out_dir.mkdir(parents=True, exist_ok=True)
    paths = []
    for start in range(0, len(predictions), ROWS_PER_SHEET):
        path = out_dir / f"predictions_{start // ROWS_PER_SHEET + 1}.png"
        prediction_sheet(predictions[start : start + ROWS_PER_SHEET], data).save(path)
        paths.append(path)
    return paths


def prediction_sheet(predictions: Sequence[Prediction], data: SegmentationData) -> Image.Image:
    font = ImageFont.load_default(FONT_SIZE)
    small_font = ImageFont.load_default(FONT_SIZE - 3)
    line = FONT_SIZE + MARGIN
    rows = [panels(prediction, data) for prediction in predictions]
    shown = np.unique(np.concatenate([np.unique(mask) for p in predictions for mask in (p.truth, p.prediction)]))
    labels = [label for label in shown.tolist() if label != IGNORED] + [IGNORED] * (IGNORED in shown)
    names = ["not scored" if label == IGNORED else data.class_names[label] for label in labels]

    colors = label_colors()

    # 1. Size of the figure.
    width = 3 * PANEL_WIDTH + 4 * MARGIN
    entries = layout_legend([font.getlength(name) for name in names], width)
    legend_rows = entries[-1][1] + 1
    height = MARGIN + line + sum(row[0].height + line for row in rows) + legend_rows * line + MARGIN

    # 2. Headings, panels, legend.
    sheet = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(sheet)
    for column, heading in enumerate(("image", "truth", "prediction")):
        draw.text((MARGIN + column * (PANEL_WIDTH + MARGIN), MARGIN), heading, fill=INK, font=font)
    top = MARGIN + line
    for prediction, row in zip(predictions, rows, strict=True):
        captions = (printable(prediction.item.image.name), "", pixel_accuracy(prediction))
        for column, (panel, caption) in enumerate(zip(row, captions, strict=True)):
            left = MARGIN + column * (PANEL_WIDTH + MARGIN)
            sheet.paste(panel, (left, top))
            draw.text((left, top + panel.height + 3), caption, fill=FAINT_INK, font=small_font)
        top += row[0].height + line
    for label, name, (x, legend_row) in zip(labels, names, entries, strict=True):
        y = top + legend_row * line
        draw.rectangle((x, y, x + FONT_SIZE, y + FONT_SIZE), fill=tuple(colors[label]), outline=INK)
        draw.text((x + FONT_SIZE + 6, y + FONT_SIZE // 2), name, fill=INK, font=font, anchor="lm")
    return sheet


def panels(prediction: Prediction, data: SegmentationData) -> list[Image.Image]:
    """Image, truth and prediction, resized to fit into a panel."""
    height, width = prediction.truth.shape
    scale = min(PANEL_WIDTH / width, MAX_PANEL_HEIGHT / height)
    size = max(1, round(height * scale)), max(1, round(width * scale))
    image = resize_image(shown_colors(data.read_image(prediction.item), data.pixels.shown_channels), size)
    masks = (resize_mask(mask, size) for mask in (prediction.truth, prediction.prediction))
    return [Image.fromarray(image), *(Image.fromarray(label_colors()[mask]) for mask in masks)]


def pixel_accuracy(prediction: Prediction) -> str:
    scored = prediction.truth != IGNORED
    if not scored.any():
        return "no pixel is scored"
    return f"{(prediction.prediction == prediction.truth)[scored].mean():.0%} of pixels correct"


def label_colors() -> UInt8[np.ndarray, "256 3"]:
    """RGB of each label, IGNORED included."""
    return np.array([class_color(label) for label in range(IGNORED)] + [NOT_SCORED], np.uint8)


def layout_legend(text_widths: Sequence[float], width: int) -> list[tuple[int, int]]:
    """(left edge in pixels, row) of each entry, wrapped like the words of a paragraph."""
    places, x, row = [], MARGIN, 0
    for text_width in text_widths:
        entry_width = round(FONT_SIZE + 6 + text_width)
        if x > MARGIN and x + entry_width > width - MARGIN:
            x, row = MARGIN, row + 1
        places.append((x, row))
        x += entry_width + 2 * MARGIN
    return places
