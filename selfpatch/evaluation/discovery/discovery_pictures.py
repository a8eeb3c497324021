"""Figure of discovered objects: found and true boxes on the image, the degrees of its patches beside it."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from selfpatch.evaluation.datasets.box_folder import Box
from selfpatch.evaluation.discovery.lost import LostResult
from selfpatch.output.printable import printable

FOUND, TRUE, SEED = "#ff3030", "#30e050", "#30e0ff"
PER_ROW = 2  # images


class Discovery(NamedTuple):
    name: str
    pixels: UInt8[np.ndarray, "H W 3"]
    box: Box
    true_boxes: Sequence[Box]
    best_iou: float
    found: LostResult


def draw_discoveries(discoveries: Sequence[Discovery], path: Path) -> None:
    num_rows = -(-len(discoveries) // PER_ROW)
    figure = Figure(figsize=(3.2 * 2 * PER_ROW, 2.9 * num_rows + 0.5), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(num_rows, 2 * PER_ROW, squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    for i, shown in enumerate(discoveries):
        image, degrees = grid[i // PER_ROW, i % PER_ROW * 2 : i % PER_ROW * 2 + 2]
        image.imshow(shown.pixels)
        for color, boxes in ((TRUE, shown.true_boxes), (FOUND, [shown.box])):
            for left, top, right, bottom in boxes:
                outline = {"fill": False, "edgecolor": color, "linewidth": 2}
                image.add_patch(Rectangle((left - 0.5, top - 0.5), right - left, bottom - top, **outline))
        image.set_title(f"{printable(shown.name)}\nIoU {shown.best_iou:.2f}", fontsize=8, parse_math=False)
        degrees.imshow(shown.found.degree, cmap="magma_r")
        row, column = shown.found.seed
        degrees.plot(column, row, marker="s", markersize=7, markerfacecolor="none", markeredgecolor=SEED)
        degrees.set_title("degree (bright: similar to few)", fontsize=8)
    title = "Red: found. Green: true. Right: to how many patches each is similar; the marked one is the seed."
    figure.suptitle(title, fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90)
