"""Pictures of segmented videos: indexed masks, a grid of frames, and an animation."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from selfpatch.evaluation.datasets.davis import Video, read_annotation, read_frame
from selfpatch.evaluation.features import resize_image, resize_mask
from selfpatch.output.printable import printable

FRAMES_PER_SHEET, FRAMES_PER_ANIMATION = 6, 40
PANEL_SIDE, ANIMATED_SIDE = 420, 320  # of the longer side, in pixels, at most
SECONDS = 4  # duration of an animation
MARGIN, LINE, FONT_SIZE = 12, 24, 15
INK, FAINT_INK, PAPER = (32, 32, 32), (110, 110, 110), (255, 255, 255)
OPACITY = 0.55  # of an object's color over the frame


def davis_palette() -> UInt8[np.ndarray, "256 3"]:
    """DAVIS's color map of objects: black, dark red, dark green, ...

    Every third bit of the index, from the lowest, goes to one channel, from its highest bit down (as in Pascal VOC).
    """
    numbers = np.arange(256)[:, None]
    channels = np.arange(3)
    bits = [((numbers >> (3 * bit + channels)) & 1) << (7 - bit) for bit in range(3)]
    return np.sum(bits, axis=0).astype(np.uint8)


PALETTE = davis_palette()


def write_mask(mask: UInt8[np.ndarray, "H W"], path: Path) -> None:
    """Indexed PNG: its values are object numbers, its palette is DAVIS's."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(mask)
    image.putpalette(PALETTE.tobytes())
    image.save(path)


def write_video_pictures(video: Video, masks: Sequence[UInt8[np.ndarray, "H W"]], out_dir: Path) -> None:
    """OUT_DIR/VIDEO.png and OUT_DIR/VIDEO.gif: truth beside prediction; one mask per frame."""
    out_dir.mkdir(parents=True, exist_ok=True)
    video_sheet(video, masks).save(out_dir / f"{video.name}.png")
    shown = evenly_spaced(len(video.frames), FRAMES_PER_ANIMATION)
    first, *others = [animated_frame(video, masks, index) for index in shown]
    milliseconds = round(1000 * SECONDS / len(shown))
    first.save(out_dir / f"{video.name}.gif", save_all=True, append_images=others, duration=milliseconds, loop=0)


def video_sheet(video: Video, masks: Sequence[UInt8[np.ndarray, "H W"]]) -> Image.Image:
    """One row per frame: truth and prediction; evenly spaced frames, with the first and the last."""
    font, small_font = ImageFont.load_default(FONT_SIZE), ImageFont.load_default(FONT_SIZE - 3)
    shown = evenly_spaced(len(video.frames), FRAMES_PER_SHEET)
    height, width = fitted(video.size, PANEL_SIDE)
    sheet = Image.new("RGB", (2 * width + 3 * MARGIN, 2 * LINE + MARGIN + len(shown) * (height + LINE) + MARGIN), PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((MARGIN, MARGIN), printable(video.name), INK, font)
    for column, heading in enumerate(("truth", "prediction")):
        draw.text((MARGIN + column * (width + MARGIN), MARGIN + LINE), heading, INK, font)
    top = MARGIN + 2 * LINE
    for index in shown:
        for column, panel in enumerate(panels(video, masks, index, (height, width))):
            sheet.paste(Image.fromarray(panel), (MARGIN + column * (width + MARGIN), top))
        caption = printable(video.frames[index].image.name) + ("  (given)" if index == 0 else "")
        draw.text((MARGIN, top + height + 3), caption, FAINT_INK, small_font)
        top += height + LINE
    return sheet


def animated_frame(video: Video, masks: Sequence[UInt8[np.ndarray, "H W"]], index: int) -> Image.Image:
    """Truth beside prediction, quantized to the 256 colors of a GIF."""
    height, width = fitted(video.size, ANIMATED_SIDE)
    picture = Image.new("RGB", (2 * width + MARGIN // 2, height + LINE), PAPER)
    draw = ImageDraw.Draw(picture)
    both = panels(video, masks, index, (height, width))
    for column, (panel, heading) in enumerate(zip(both, ("truth", "prediction"), strict=True)):
        left = column * (width + MARGIN // 2)
        draw.text((left + 3, 3), heading, INK, ImageFont.load_default(FONT_SIZE - 3))
        picture.paste(Image.fromarray(panel), (left, LINE))
    return picture.quantize(256, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)


def panels(
    video: Video, masks: Sequence[UInt8[np.ndarray, "H W"]], index: int, size: tuple[int, int]
) -> list[UInt8[np.ndarray, "H2 W2 3"]]:
    """Frame with its true objects, and with the predicted ones."""
    frame = video.frames[index]
    image = resize_image(read_frame(frame), size)
    return [overlaid(image, resize_mask(mask, size)) for mask in (read_annotation(frame), masks[index])]


def overlaid(image: UInt8[np.ndarray, "H W 3"], mask: UInt8[np.ndarray, "H W"]) -> UInt8[np.ndarray, "H W 3"]:
    """Objects in translucent colors with a light outline; the background unchanged."""
    tinted = (1 - OPACITY) * image + OPACITY * (PALETTE[mask] + 64.0).clip(0, 255)
    inside = mask > 0
    rim = np.zeros_like(inside)
    rim[:, 1:] |= mask[:, 1:] != mask[:, :-1]
    rim[1:] |= mask[1:] != mask[:-1]
    shown = np.where(inside[..., None], tinted, image)
    return np.where(rim[..., None], PAPER, shown).astype(np.uint8)


def evenly_spaced(count: int, at_most: int) -> list[int]:
    """Evenly spaced indices from 0 to count - 1, both included."""
    return np.linspace(0, count - 1, min(count, at_most)).round().astype(int).tolist()


def fitted(size: tuple[int, int], side: int) -> tuple[int, int]:
    """(rows, columns) scaled down so that the longer side is at most `side`."""
    scale = min(1, side / max(size))
    rows, columns = (max(1, round(length * scale)) for length in size)
    return rows, columns
