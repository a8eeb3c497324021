"""Label propagation and DAVIS's J and F against their plain forms: time in paired runs, memory, and equal results.

    python -m benchmarks.evaluation --rounds 3

* Label propagation: one frame of a video at 480 x 832 px, as grids of 30 x 52 (patch 16) and 60 x 104 (patch 8)
  features of 384 channels, 8 context frames, 4 labels, radius 12, top 5. The plain form
  (tests/reference/plain_label_propagation.py) is what the original program computes: all patches against all, times a
  mask of neighborhoods, top-k over the keys. It builds the mask pair by pair once a video: "a frame" leaves that out,
  "whole video" spreads it over the 66 frames of a DAVIS video. Features are made up: a field that moves, and noise.
* J and F: from the label maps of a video of 480 x 854 px to both measures of three objects, of 1 to 10 % of the frame
  each. The plain form (tests/reference/plain_davis.py) is what the toolkit computes: objects as a stack of masks, each
  measured over the whole frame.

Runs alternate A B A B; ratios are medians over the rounds, with their spread. Memory is the peak of a process of its
own that carries the labels of one frame; in brackets, less that of one that only makes the features. "other patches"
have labels that differ by more than 1e-5.
"""

import argparse
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does, before torch is imported

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table

from benchmarks.peak_memory import peak_mb
from selfpatch.evaluation.video.davis_measures import score_frame
from selfpatch.evaluation.video.label_propagation import propagate_labels
from tests.reference import plain_davis, plain_label_propagation

GRIDS = {16: (30, 52), 8: (60, 104)}
EMBED_DIM, NUM_CONTEXT, NUM_LABELS, RADIUS, NUM_NEIGHBORS, TEMPERATURE = 384, 8, 4, 12, 5, 0.1
FRAMES_PER_VIDEO = 66  # of the 30 validation videos of DAVIS-2017: 1,999 frames
FRAME_SIZE, NUM_OBJECTS, NUM_FRAMES = (480, 854), 3, 12


def made_up_video(patch_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Features [1 + T, R, S, D] as unit vectors, the last frame's first, and labels of the others [T, R, S, C]."""
    rows, columns = GRIDS[patch_size]
    generator = torch.Generator().manual_seed(0)
    field = F.interpolate(torch.randn(1, EMBED_DIM, rows // 3, columns // 3, generator=generator), (rows, columns))
    frames = [
        field[0].roll(t, dims=2) + 0.5 * torch.randn(EMBED_DIM, rows, columns, generator=generator)
        for t in range(NUM_CONTEXT + 1)
    ]
    labels = torch.randn(NUM_CONTEXT, rows, columns, NUM_LABELS, generator=generator).softmax(dim=-1)
    return F.normalize(torch.stack(frames).permute(0, 2, 3, 1), dim=-1).contiguous(), labels


def ours(features: torch.Tensor, labels: torch.Tensor, near: torch.Tensor) -> torch.Tensor:
    return propagate_labels(
        features[0], features[1:], labels, radius=RADIUS, num_neighbors=NUM_NEIGHBORS, temperature=TEMPERATURE
    )


def plain(features: torch.Tensor, labels: torch.Tensor, near: torch.Tensor) -> torch.Tensor:
    query, *context = features.flatten(1, 2).transpose(1, 2)  # [D, N] each
    of_context = list(labels.flatten(1, 2).transpose(1, 2))
    carried = plain_label_propagation.carry(query, context, of_context, near, NUM_NEIGHBORS, TEMPERATURE)
    return carried.T.unflatten(0, features.shape[1:3])


CARRY = {"plain": plain, "ours": ours}


def broadcast_neighborhood(rows: int, columns: int) -> torch.Tensor:
    """The same mask at once, for measurements that are not about building it."""
    near_rows, near_columns = (
        (torch.arange(size)[:, None] - torch.arange(size)).abs() <= RADIUS for size in (rows, columns)
    )
    near = near_rows[:, None, :, None] & near_columns[None, :, None, :]
    return near.flatten(2).flatten(0, 1).float()


def timed(run: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = run()
    return time.perf_counter() - start, result


def peak_of(name: str, patch_size: int) -> float:
    """Peak memory of this process, in which nothing else has happened."""
    features, labels = made_up_video(patch_size)
    if name == "plain":
        plain(features, labels, broadcast_neighborhood(*GRIDS[patch_size]))
    elif name == "ours":
        ours(features, labels, torch.empty(0))
    return peak_mb()


def in_a_process_of_its_own(*arguments: object) -> float:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(peak_of, arguments)


def made_up_masks(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels of one frame, true and predicted: ellipses, and the same moved a little and ragged."""
    rng = np.random.default_rng(seed)
    rows, columns = FRAME_SIZE
    masks = np.zeros((2, rows, columns), np.uint8)
    for label in range(1, NUM_OBJECTS + 1):
        share = rng.uniform(0.01, 0.1)
        flatness = rng.uniform(0.5, 2)
        radius = np.sqrt(share * rows * columns / np.pi)
        axes = (int(radius * np.sqrt(flatness)), int(radius / np.sqrt(flatness)))
        middle = rng.uniform(0.2, 0.8, 2) * (columns, rows)
        for mask, shift in zip(masks, (0, 1), strict=True):
            x, y = middle + shift * rng.uniform(-6, 6, 2)
            cv2.ellipse(mask, (int(x), int(y)), axes, rng.uniform(0, 180), 0, 360, label, -1)
    return masks[0], cv2.medianBlur(masks[1], 9)


def our_scores(truths: list[np.ndarray], predictions: list[np.ndarray]) -> np.ndarray:
    frames = list(zip(truths, predictions, strict=True))[1:-1]
    return np.array([score_frame(*frame, NUM_OBJECTS) for frame in frames]).transpose(2, 1, 0)  # [O, J and F, T]


def plain_scores(truths: list[np.ndarray], predictions: list[np.ndarray]) -> np.ndarray:
    return np.array(plain_davis.score_video(truths, predictions))


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.1f} ({min(values):.1f} to {max(values):.1f})"


def compare_propagation(patch_size: int, rounds: int, table: Table) -> None:
    rows, columns = GRIDS[patch_size]
    features, labels = made_up_video(patch_size)
    building, near = timed(lambda: plain_label_propagation.neighborhood(rows, columns, RADIUS))
    assert torch.equal(near, broadcast_neighborhood(rows, columns))
    ours(features, labels, near)  # warms up
    seconds: dict[str, list[float]] = {"plain": [], "ours": []}
    num_other = 0
    for _ in range(rounds):
        results = {}
        for name, carry in CARRY.items():
            taken, results[name] = timed(lambda carry=carry: carry(features, labels, near))
            seconds[name].append(taken)
        # Rounding decides between two patches that are fifth by less than 1e-7.
        is_other = (results["plain"] - results["ours"]).abs().amax(dim=-1) > 1e-5
        num_other = max(num_other, int(is_other.sum()))
    pairs = list(zip(seconds["plain"], seconds["ours"], strict=True))
    idle = in_a_process_of_its_own("nothing", patch_size)
    memory = {name: in_a_process_of_its_own(name, patch_size) for name in CARRY}
    table.add_row(
        str(patch_size),
        f"{statistics.median(seconds['plain']):.2f}",
        f"{statistics.median(seconds['ours']):.3f}",
        spread([plain / ours for plain, ours in pairs]),
        f"{building:.1f}",
        spread([(plain + building / FRAMES_PER_VIDEO) / ours for plain, ours in pairs]),
        *(f"{memory[name]:.0f} ({memory[name] - idle:.0f})" for name in CARRY),
        f"{num_other} of {rows * columns}",
    )


def compare_measures(rounds: int) -> Table:
    video = tuple(zip(*map(made_up_masks, range(NUM_FRAMES)), strict=True))  # truths, predictions
    our_scores(*video)  # warms up
    milliseconds: dict[str, list[float]] = {"plain": [], "ours": []}
    for _ in range(rounds):
        results = {}
        for name, score in (("plain", plain_scores), ("ours", our_scores)):
            seconds, results[name] = timed(lambda score=score: score(*video))
            milliseconds[name].append(1000 * seconds / (NUM_FRAMES - 2) / NUM_OBJECTS)
        difference = np.abs(results["plain"] - results["ours"]).max()
    table = Table(
        "plain ms an object and frame", "ours", "ratio", "largest difference", title="J and F", title_justify="left"
    )
    medians = (f"{statistics.median(values):.2f}" for values in milliseconds.values())
    ratios = [plain / ours for plain, ours in zip(*milliseconds.values(), strict=True)]
    table.add_row(*medians, spread(ratios), f"{difference:.0e}")
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--patch-sizes", type=int, nargs="+", default=[16, 8], choices=list(GRIDS))
    parser.add_argument("--patch-8-rounds", type=int, default=1, help="its plain form takes most of a minute")
    arguments = parser.parse_args()
    console = Console(width=160)

    table = Table(
        "patch", "plain s a frame", "ours", "ratio a frame", "mask s a video", "ratio, whole video", "plain MB (added)",
        "ours MB (added)", "other patches", title="Label propagation", title_justify="left",
    )  # fmt: skip
    for patch_size in arguments.patch_sizes:
        compare_propagation(patch_size, arguments.patch_8_rounds if patch_size == 8 else arguments.rounds, table)
    console.print(table)

    console.print(compare_measures(arguments.rounds))


if __name__ == "__main__":
    main()
