"""Folders of images a class whose colours give the class away."""

from pathlib import Path

import numpy as np
from PIL import Image

COLORS = [(230, 40, 40), (40, 200, 60), (50, 60, 220), (240, 220, 50), (20, 20, 20), (240, 240, 240), (40, 200, 220)]
NAMES = ("ant", "bee", "cat", "dog", "eel", "fox", "gnu")


def write_class(
    folder: Path, label: int, count: int, *, size: tuple[int, int] = (20, 30), noise: int = 20, seed: int = 0
) -> None:
    rng = np.random.default_rng((seed, label, count))
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        pixels = np.array(COLORS[label]) + rng.integers(-noise, noise + 1, (*size, 3))
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{i}.png")


def write_classes(root: Path, *, num_classes: int = 7, num_train: int = 3, num_val: int = 2, **settings) -> Path:
    for label, name in enumerate(NAMES[:num_classes]):
        write_class(root / "train" / name, label, num_train, **settings)
        write_class(root / "val" / name, label, num_val, **settings)
    return root
