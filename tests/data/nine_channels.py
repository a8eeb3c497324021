"""Made-up 16-bit images of nine channels with disks that a single channel shows, and their labels."""

from pathlib import Path

import numpy as np
import tifffile
from PIL import Image

CLASSES = ("ground", "disk of channel 7", "disk of channel 1")


def nine_channels(seed: int, size: int = 64) -> tuple[np.ndarray, np.ndarray]:
    """Pixels [9, size, size] of 12 bits in 16, and labels 1 (ground), 2 (a disk in channel 7), 3 (a disk in channel 1).

    In every other channel, there is noise of the same kind inside and outside of both disks.
    """
    rng = np.random.default_rng(seed)
    pixels = rng.normal(1000, 60, (9, size, size))
    labels = np.ones((size, size), np.uint8)
    rows, columns = np.mgrid[:size, :size]
    for label, channel, middle in ((2, 7, 0.3), (3, 1, 0.7)):
        row, column = size * middle + rng.uniform(-4, 4), rng.uniform(0.25, 0.75) * size
        inside = (rows - row) ** 2 + (columns - column) ** 2 < (0.17 * size) ** 2
        pixels[channel][inside] += 1500
        labels[inside] = label
    return pixels.clip(0, 4095).astype(np.uint16), labels


def write_nine_channels(root: Path, *, num_unlabeled: int, num_train: int = 0, num_val: int = 0) -> None:
    """root/images, and root/labeled in ADE20K's layout if there are labeled ones."""
    (root / "images").mkdir(parents=True)
    for index in range(num_unlabeled):
        tifffile.imwrite(root / "images" / f"{index:03}.tif", nine_channels(index)[0])
    for split, first, count in (("training", 1000, num_train), ("validation", 2000, num_val)):
        for kind in ("images", "annotations") if count else ():
            (root / "labeled" / kind / split).mkdir(parents=True)
        for index in range(count):
            pixels, labels = nine_channels(first + index)
            tifffile.imwrite(root / "labeled" / "images" / split / f"{index:03}.tif", pixels)
            Image.fromarray(labels).save(root / "labeled" / "annotations" / split / f"{index:03}.png")
    if num_train:
        (root / "labeled" / "classes.txt").write_text("\n".join(CLASSES) + "\n", encoding="utf-8")
