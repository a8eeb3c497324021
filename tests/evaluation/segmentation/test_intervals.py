"""Intervals hold the truth as often as they say, and overlaps are packed without loss."""

import json

import numpy as np
import pytest
import torch

from selfpatch.evaluation.metrics import segmentation_metrics
from selfpatch.evaluation.segmentation import intervals
from selfpatch.evaluation.segmentation import overlaps as overlaps_room
from selfpatch.evaluation.segmentation.overlaps import pack, unpack


def overlaps_of(rng: np.random.Generator, iou: np.ndarray, num_images: int = 40) -> np.ndarray:
    """[S, B, 2, 3]: pixels of images whose IoU is about that of their seed."""
    union = rng.integers(200, 1000, size=(len(iou), num_images, 3))
    intersection = (union * np.clip(iou[:, None, None] + rng.normal(0, 0.1, union.shape), 0, 1)).astype(int)
    return np.stack([intersection, union], axis=2)


def test_mean_iou_is_that_of_the_package():
    confusion = torch.randint(0, 50, (4, 4), generator=torch.Generator().manual_seed(0))
    confusion[3], confusion[:, 3] = 0, 0  # a class that does not occur
    counts = confusion.numpy()
    overlaps = np.stack([counts.diagonal(), counts.sum(0) + counts.sum(1) - counts.diagonal()])
    expected = segmentation_metrics(confusion, list("abcd"))["mIoU"]
    assert intervals.mean_iou(overlaps[None]) == pytest.approx([expected])


def test_the_bootstrap_equals_a_slow_one():
    """Seeds that are alike leave images alone: the interval is that of drawing images one by one."""
    rng = np.random.default_rng(0)
    method, base = (np.repeat(overlaps_of(rng, np.array([iou])), 3, axis=0) for iou in (0.5, 0.4))
    found = intervals.difference_of_overlaps(method, base)
    slow = []
    for _ in range(2000):
        images = rng.integers(40, size=40)
        first, second = (
            np.mean([overlaps[0, images, 0, c].sum() / overlaps[0, images, 1, c].sum() for c in range(3)])
            for overlaps in (method, base)
        )
        slow.append(first - second)
    assert found.spread == pytest.approx(0, abs=1e-12)
    assert [found.low, found.high] == pytest.approx(np.quantile(slow, [0.025, 0.975]), abs=0.002)


def test_intervals_of_four_seeds_hold_the_truth_as_often_as_they_say(monkeypatch):
    """A method is 0.05 better, give or take seeds and images. Without the widening, 95 of 100 would be 85."""
    monkeypatch.setattr(intervals, "NUM_DRAWS", 200)
    rng, held = np.random.default_rng(0), 0
    for _ in range(200):
        of_seed, of_image = rng.normal(0, 0.05, (4, 1)), rng.normal(0, 0.02, 20)  # in both methods: pairs take them off
        iou = [
            np.clip(mean + of_seed + of_image + rng.normal(0, 0.02, (4, 1)) + rng.normal(0, 0.04, 20), 0, 1)
            for mean in (0.45, 0.4)
        ]
        method, base = (np.round(1e6 * np.stack([x, np.ones_like(x)], axis=-1))[..., None].astype(int) for x in iou)
        found = intervals.difference_of_overlaps(method, base)
        assert found.low is not None and found.high is not None
        held += found.low <= 0.05 <= found.high
    assert 0.91 <= held / 200 <= 0.99


def test_one_seed_has_no_interval():
    rng = np.random.default_rng(0)
    one = overlaps_of(rng, np.array([0.5]))
    assert intervals.difference_of_overlaps(one, one) == (0, None, None, None, 1)


@pytest.mark.parametrize(("spread", "count"), [(2, 34), (1, 10), (1.25, 15)])
def test_needed_seeds_are_those_of_the_tables(spread, count):
    """Pairs for effects of 0.5, 1 and 0.8 at 5 % and a power of 80 %, as in Cohen's tables."""
    assert intervals.seeds_needed(spread, 1) == count


def test_overlaps_are_packed_without_loss(monkeypatch):
    overlaps = overlaps_of(np.random.default_rng(0), np.array([0.5]))[0]
    monkeypatch.setattr(overlaps_room, "MAX_GROUPS", 15)
    groups = overlaps_room.grouped(overlaps)
    assert np.array_equal(groups, [overlaps[first : first + 3].sum(axis=0) for first in range(0, 40, 3)])
    assert np.array_equal(unpack(json.loads(json.dumps(pack(overlaps)))), overlaps)


def test_one_seed_has_an_interval_over_images_where_it_is_asked_for():
    """That of three seeds that are alike, which add nothing."""
    rng = np.random.default_rng(0)
    method, base = (overlaps_of(rng, np.array([iou])) for iou in (0.5, 0.45))
    alone = intervals.difference_of_overlaps(method, base, images_alone=True)
    alike = intervals.difference_of_overlaps(np.repeat(method, 3, axis=0), np.repeat(base, 3, axis=0))
    assert (alone.low, alone.mean, alone.high) == pytest.approx((alike.low, alike.mean, alike.high))
    assert alone.low < alone.mean < alone.high


def test_of_several_scores_it_is_that_of_their_mean():
    """Images are drawn alike for all scores: two copies of one score are that score, and opposite ones are none."""
    rng = np.random.default_rng(0)
    method, base = (overlaps_of(rng, np.array([iou, iou, iou])) for iou in (0.5, 0.45))
    one = intervals.difference_of_overlaps(method, base)
    assert intervals.difference_of_overlaps(np.stack([method] * 2), np.stack([base] * 2)) == pytest.approx(one)
    opposite = intervals.difference_of_overlaps(np.stack([method, base]), np.stack([base, method]))
    assert opposite[:4] == pytest.approx((0, 0, 0, 0), abs=1e-12)
