"""Sheets of detections: boxes, masks and names over the image, beside the truth, in the colours of the classes."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from faster_coco_eval.core import mask as run_lengths
from jaxtyping import Bool, UInt8
from PIL import Image, ImageDraw, ImageFont

from selfpatch.evaluation.datasets.coco_annotations import CocoImage
from selfpatch.evaluation.detection.detection_scores import ResultEntry
from selfpatch.evaluation.features import batches, resize_image, resize_mask
from selfpatch.evaluation.segmentation.prediction_pictures import (
    FAINT_INK,
    FONT_SIZE,
    INK,
    MARGIN,
    MAX_PANEL_HEIGHT,
    PANEL_WIDTH,
    PAPER,
    ROWS_PER_SHEET,
    class_color,
)
from selfpatch.output.printable import printable

LEAST_SCORE = 0.3  # of what is drawn; the score counts all
MASK_OPACITY = 0.5
LABEL_SIZE = 11


class DetectedImage(NamedTuple):
    item: CocoImage
    image: UInt8[np.ndarray, "H W 3"]
    results: list[ResultEntry]


class Drawn(NamedTuple):
    """An object to draw, in pixels of the image."""

    label: int
    text: str
    box: tuple[float, float, float, float]  # left, top, right, bottom
    mask: UInt8[np.ndarray, "H W"]


def write_detection_sheets(
    shown: Sequence[DetectedImage], class_names: Sequence[str], category_ids: Sequence[int], out_dir: Path
) -> list[Path]:
    """OUT_DIR/detections_1.png, detections_2.png, ...; ROWS_PER_SHEET images on each."""
    out_dir.mkdir(parents=True, exist_ok=True)
    paths = []
    for number, rows in enumerate(batches(shown, ROWS_PER_SHEET), start=1):
        path = out_dir / f"detections_{number}.png"
        detection_sheet(rows, class_names, category_ids).save(path)
        paths.append(path)
    return paths


def detection_sheet(
    shown: Sequence[DetectedImage], class_names: Sequence[str], category_ids: Sequence[int]
) -> Image.Image:
    font, small_font = ImageFont.load_default(FONT_SIZE), ImageFont.load_default(FONT_SIZE - 3)
    line = FONT_SIZE + MARGIN
    rows = []
    for image in shown:
        truth, detected = true_objects(image, class_names), detected_objects(image, class_names, category_ids)
        panels = [drawn(image.image, objects) for objects in ((), truth, detected)]
        captions = (printable(image.item.path.name), "", f"{len(detected)} of a score above {LEAST_SCORE:.0%}")
        rows.append((panels, captions))

    width = 3 * PANEL_WIDTH + 4 * MARGIN
    height = MARGIN + line + sum(panels[0].height + line for panels, _ in rows) + MARGIN
    sheet = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(sheet)
    for column, heading in enumerate(("image", "truth", "detections")):
        draw.text((MARGIN + column * (PANEL_WIDTH + MARGIN), MARGIN), heading, fill=INK, font=font)
    top = MARGIN + line
    for panels, captions in rows:
        for column, (panel, caption) in enumerate(zip(panels, captions, strict=True)):
            left = MARGIN + column * (PANEL_WIDTH + MARGIN)
            sheet.paste(panel, (left, top))
            draw.text((left, top + panel.height + 3), caption, fill=FAINT_INK, font=small_font)
        top += panels[0].height + line
    return sheet


def true_objects(image: DetectedImage, class_names: Sequence[str]) -> list[Drawn]:
    """Crowds are named so: they are not scored."""
    return [
        Drawn(
            instance.label,
            class_names[instance.label] + " (crowd)" * instance.is_crowd,
            instance.box,
            mask,
        )
        for instance, mask in zip(image.item.instances, image.item.masks(), strict=True)
    ]


def detected_objects(image: DetectedImage, class_names: Sequence[str], category_ids: Sequence[int]) -> list[Drawn]:
    """Those with a score of at least LEAST_SCORE, the best one last, so that it is on top."""
    objects = []
    for entry in sorted(image.results, key=lambda entry: entry["score"]):
        if entry["score"] < LEAST_SCORE:
            continue
        label = category_ids.index(entry["category_id"])
        left, top, width, height = entry["bbox"]
        mask = run_lengths.decode(entry["segmentation"])
        text = f"{class_names[label]} {entry['score']:.0%}"
        objects.append(Drawn(label, text, (left, top, left + width, top + height), mask))
    return objects


def drawn(pixels: UInt8[np.ndarray, "H W 3"], objects: Iterable[Drawn]) -> Image.Image:
    """The image, as large as fits into a panel, with objects over it; later ones are on top."""
    height, width, _ = pixels.shape
    scale = min(PANEL_WIDTH / width, MAX_PANEL_HEIGHT / height)
    size = max(1, round(height * scale)), max(1, round(width * scale))
    resized = resize_image(pixels, size)
    for thing in objects:
        inside: Bool[np.ndarray, "R S"] = resize_mask(thing.mask, size) > 0
        color = np.array(class_color(thing.label))
        resized[inside] = ((1 - MASK_OPACITY) * resized[inside] + MASK_OPACITY * color).round()
    panel = Image.fromarray(resized)
    draw, font = ImageDraw.Draw(panel), ImageFont.load_default(LABEL_SIZE)
    for thing in objects:
        left, top, right, bottom = (scale * end for end in thing.box)
        ends = (left, top, max(right - 1, left), max(bottom - 1, top))
        draw.rectangle(ends, outline=class_color(thing.label), width=2)
    # Names after all boxes, so that none is crossed out.
    for thing in objects:
        pixel_accuracy_caption(draw, thing, scale, panel.size, font)
    return panel


def pixel_accuracy_caption(
    draw: ImageDraw.ImageDraw, thing: Drawn, scale: float, panel_size: tuple[int, int], font: ImageFont.FreeTypeFont
) -> None:
    """On a patch of the class's colour at the upper left of the box, within the panel."""
    width, height = draw.textlength(thing.text, font) + 4, LABEL_SIZE + 4
    left = min(max(scale * thing.box[0], 0), max(panel_size[0] - width, 0))
    top = min(max(scale * thing.box[1] - height, 0), panel_size[1] - height)
    color = class_color(thing.label)
    draw.rectangle((left, top, left + width, top + height), fill=color)
    is_light = np.dot(color, (0.299, 0.587, 0.114)) > 140
    draw.text((left + 2, top + 1), thing.text, fill=INK if is_light else PAPER, font=font)
