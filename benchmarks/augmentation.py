"""Images a second that one core turns into DINO's crops: selfpatch.data against plain Pillow and torchvision.

    python -m benchmarks.augmentation            (from the root of the repository)

Both read the same made-up JPEGs of 500 x 375 pixels and about 110 KB, and make 2 crops of 224 and 8 of 96 pixels. They
run by turns (A B A B ...), and medians over the rounds are shown with their quartiles: other work on the machine slows
both.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table

from selfpatch.config import CropsConfig
from selfpatch.data.augmentation.multi_crop import MultiCrop
from selfpatch.data.reading.decode import read_image
from tests.reference.plain_augmentation import PlainMultiCrop

JPEG_BYTES = 110_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=16, help="images in a round")
    parser.add_argument("--rounds", type=int, default=9, help="how often every pipeline runs")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    with tempfile.TemporaryDirectory() as folder:
        paths = [write_photograph(Path(folder) / f"{i}.jpg", seed=i) for i in range(arguments.images)]
        seconds = measure(pipelines(), paths, arguments.rounds)  # [pipeline, round], of one image
    table = Table(title=f"2 x 224 + 8 x 96 crops, one core, {arguments.rounds} rounds of {len(paths)} images")
    for heading in ("pipeline", "images/s", "ms an image (quartiles)", "times the plain one (quartiles)"):
        table.add_column(heading, justify="left" if heading == "pipeline" else "right")
    plain = next(iter(seconds.values()))
    for name, own in seconds.items():
        table.add_row(name, f"{1 / np.median(own):.0f}", spread(1e3 * own), spread(plain / own))
    Console(width=120).print(table)


def pipelines() -> dict[str, Callable[[Path], object]]:
    """The plain one first: others are compared with it."""
    plain, multi_crop, rng = PlainMultiCrop(), MultiCrop(CropsConfig()), np.random.default_rng(0)
    without_color = MultiCrop(CropsConfig(), color_in_worker=False)

    def run_plain(path: Path) -> object:
        with Image.open(path) as image:
            return plain(image.convert("RGB"))

    return {
        "plain: Pillow, torchvision, float output": run_plain,
        "selfpatch, 8-bit output": lambda path: multi_crop(read_image(path), rng),
        "selfpatch, color left to the device": lambda path: without_color(read_image(path), rng),
        "  decode only": read_image,
    }


def measure(named: dict[str, Callable[[Path], object]], paths: list[Path], rounds: int) -> dict[str, np.ndarray]:
    seconds = {name: np.empty(rounds) for name in named}
    for run in named.values():
        run(paths[0])
    for i in range(rounds):
        for name, run in named.items():
            started = time.perf_counter()
            for path in paths:
                run(path)
            seconds[name][i] = (time.perf_counter() - started) / len(paths)
    return seconds


def spread(numbers: np.ndarray) -> str:
    low, median, high = np.percentile(numbers, [25, 50, 75])
    return f"{median:.2f} ({low:.2f} to {high:.2f})"


def write_photograph(path: Path, seed: int) -> Path:
    """Colour at every scale as in photographs, and as much fine texture as makes JPEG_BYTES at quality 90."""
    rng = np.random.default_rng(seed)
    layers = [
        weight * cv2.resize(rng.random((size, size, 3)), (500, 375), interpolation=cv2.INTER_CUBIC)
        for size, weight in ((3, 1.0), (8, 0.6), (24, 0.35), (70, 0.2))
    ]
    smooth = np.sum(layers, axis=0)
    smooth = 255 * (smooth - smooth.min()) / np.ptp(smooth)
    texture = cv2.GaussianBlur(rng.normal(size=(375, 500, 1)), (0, 0), 0.7)[..., None]
    low, high = 0.0, 200.0
    for _ in range(12):
        contrast = (low + high) / 2
        Image.fromarray(np.clip(smooth + contrast * texture, 0, 255).astype(np.uint8)).save(path, quality=90)
        low, high = (contrast, high) if path.stat().st_size < JPEG_BYTES else (low, contrast)
    return path


if __name__ == "__main__":
    main()
