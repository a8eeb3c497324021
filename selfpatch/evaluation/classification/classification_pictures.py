"""Figures of classification: confusion matrix, and the nearest training images of validation images."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64, UInt8
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

MAX_NAMED = 60  # classes whose names fit beside a matrix
MAX_COUNTED = 20  # classes whose numbers fit into its cells
NAME_LENGTH = 24
RIGHT, WRONG = "#2ca02c", "#d62728"


class Neighbor(NamedTuple):
    pixels: UInt8[np.ndarray, "H W 3"]
    class_name: str
    cosine: float


class Answer(NamedTuple):
    """Prediction for a validation image and its nearest training images, in descending order of similarity."""

    pixels: UInt8[np.ndarray, "H W 3"]
    class_name: str
    predicted: str
    neighbors: Sequence[Neighbor]


def draw_confusion(confusion: Int64[np.ndarray, "C C"], class_names: Sequence[str], path: Path) -> None:
    """True classes in rows, predicted ones in columns; color is the fraction of the true class, numbers are images."""
    num_classes = len(class_names)
    share = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    side = float(np.clip(2.5 + 0.32 * num_classes, 5, 16))
    figure = Figure(figsize=(side + 1.2, side), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    shown = axes.imshow(share, vmin=0, vmax=1, cmap="Blues")
    axes.set(xlabel="predicted", ylabel="true")
    axes.set_title("Which classes are taken for which", fontsize=11, loc="left")
    if num_classes <= MAX_NAMED:
        names = [shortened(name) for name in class_names]
        axes.set_xticks(range(num_classes), names, rotation=90, fontsize=8, parse_math=False)
        axes.set_yticks(range(num_classes), names, fontsize=8, parse_math=False)
    if num_classes <= MAX_COUNTED:
        for (row, column), count in np.ndenumerate(confusion):
            if count:
                color = "white" if share[row, column] > 0.5 else "black"
                axes.text(column, row, str(count), ha="center", va="center", fontsize=7, color=color)
    figure.colorbar(shown, ax=axes, label="share of the true class", shrink=0.7)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)


def draw_answers(answers: Sequence[Answer], path: Path) -> None:
    """One row per validation image with its nearest training images; correct class names are green, wrong ones red."""
    columns = 1 + max(len(answer.neighbors) for answer in answers)
    figure = Figure(figsize=(1.75 * columns, 2.15 * len(answers)), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(answers), columns, squeeze=False)
    for row, answer in zip(grid, answers, strict=True):
        for axes in row:
            axes.axis("off")
        row[0].imshow(answer.pixels)
        is_right = answer.predicted == answer.class_name
        verdict = "right" if is_right else f"taken for {shortened(answer.predicted)}"
        title = f"{shortened(answer.class_name)}\n{verdict}"
        row[0].set_title(title, fontsize=8, color=RIGHT if is_right else WRONG, parse_math=False)
        for axes, neighbor in zip(row[1:], answer.neighbors, strict=False):
            axes.imshow(neighbor.pixels)
            color = RIGHT if neighbor.class_name == answer.class_name else WRONG
            title = f"{shortened(neighbor.class_name)}\n{neighbor.cosine:.2f}"
            axes.set_title(title, fontsize=8, color=color, parse_math=False)
    figure.suptitle("Validation images and their nearest training images, with cosine similarity", fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)


def shortened(name: str) -> str:
    return name if len(name) <= NAME_LENGTH else f"{name[: NAME_LENGTH - 1]}…"
