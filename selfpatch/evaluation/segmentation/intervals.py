"""Intervals of paired differences of two models, and how many seeds a difference needs.

Two things are drawn at random: the seed of a run (initial weights, order of images, crops) and the validation images.
A bootstrap draws both anew; methods are paired by seed and by image. Few seeds make a bootstrap too narrow, as their
spread is estimated from themselves: the part of the seeds is widened by sqrt(n / (n - 1)) times the ratio of Student's
quantile to the normal one (Hesterberg 2015, "What teachers should know about the bootstrap", sec. 5.3).
"""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, Real
from scipy import stats

NUM_DRAWS = 4000
LEVEL = 0.95
POWER = 0.8
MAX_SEEDS = 10_000


class Difference(NamedTuple):
    """Paired difference of two methods over the seeds that both have."""

    mean: float
    spread: float | None  # standard deviation of the differences over seeds; None: one seed
    low: float | None  # of the interval; None: there is none
    high: float | None
    num_seeds: int


def mean_iou(overlaps: Real[np.ndarray, "*S 2 C"]) -> Float[np.ndarray, "*S"]:
    """Mean over the classes that occur, of intersections and unions that are summed over images already."""
    intersection, union = overlaps[..., 0, :], overlaps[..., 1, :]
    iou = intersection / np.maximum(union, 1)
    return iou.sum(axis=-1) / np.maximum((union > 0).sum(axis=-1), 1)


def difference_of_scores(scores: Float[np.ndarray, " S"], base: Float[np.ndarray, " S"]) -> Difference:
    """Of scores without images: the interval is Student's, of the differences over seeds."""
    differences = scores - base
    count, mean = len(differences), float(differences.mean())
    if count == 1:
        return Difference(mean, None, None, None, 1)
    spread = float(differences.std(ddof=1))
    margin = float(stats.t.ppf((1 + LEVEL) / 2, count - 1)) * spread / math.sqrt(count)
    return Difference(mean, spread, mean - margin, mean + margin, count)


def difference_of_overlaps(
    method: Int[np.ndarray, "*K S G 2 C"],
    base: Int[np.ndarray, "*K S G 2 C"],
    *,
    seed: int = 0,
    images_alone: bool = False,
) -> Difference:
    """Of mIoU over the same images, or groups of a few; the interval is of a bootstrap over seeds and images.

    With a leading axis K of several scores of the same images, such as one per share of the labels: of their mean.

    Args:
        images_alone: with one seed the bootstrap draws images alone, so that the chance of a training is not in the
            interval; else there is none.
    """
    method, base = (overlaps.reshape(-1, *overlaps.shape[-4:]) for overlaps in (method, base))
    plain = difference_of_scores(*(mean_iou(overlaps.sum(axis=2)).mean(axis=0) for overlaps in (method, base)))
    num_seeds, num_images = method.shape[1:3]
    if num_seeds == 1 and not images_alone:
        return plain
    rng = np.random.default_rng(seed)
    # 1. Images, the same for all seeds and methods: differences of every seed for every draw of images.
    counts = rng.multinomial(num_images, np.full(num_images, 1 / num_images), size=NUM_DRAWS).astype(np.float64)
    of_method, of_base = (
        np.stack(
            [mean_iou(np.tensordot(counts, of_seed.astype(np.float64), (1, 1))).mean(axis=1) for of_seed in by_seed],
            axis=1,
        )
        for by_seed in (method.swapaxes(0, 1), base.swapaxes(0, 1))
    )
    differences = of_method - of_base  # [draws, seeds]
    quantile = (1 + LEVEL) / 2
    if num_seeds == 1:
        low, high = np.quantile(differences[:, 0], [1 - quantile, quantile])
        return plain._replace(low=float(low), high=float(high))
    # 2. Seeds: the mean over all, and what a draw of seeds adds to it, widened.
    drawn = rng.integers(num_seeds, size=(NUM_DRAWS, num_seeds))
    means = differences.mean(axis=1)
    added = np.take_along_axis(differences, drawn, axis=1).mean(axis=1) - means
    widening = math.sqrt(num_seeds / (num_seeds - 1)) * stats.t.ppf(quantile, num_seeds - 1) / stats.norm.ppf(quantile)
    low, high = np.quantile(means + widening * added, [1 - quantile, quantile])
    return plain._replace(low=float(low), high=float(high))


def seeds_needed(spread: float, effect: float) -> int:
    """Seeds with which a paired t test finds a true difference of `effect` in POWER of all cases, at LEVEL.

    Args:
        spread: standard deviation of the paired differences over seeds, in the unit of `effect`.
    """
    for count in range(2, MAX_SEEDS):
        shift = effect / max(spread, 1e-12) * math.sqrt(count)
        critical = stats.t.ppf((1 + LEVEL) / 2, count - 1)
        if stats.nct.sf(critical, count - 1, shift) >= POWER:
            return count
    return MAX_SEEDS
