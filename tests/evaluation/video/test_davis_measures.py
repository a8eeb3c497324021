import math

import numpy as np
import pytest

from selfpatch.evaluation.video.davis_measures import (
    ObjectScores,
    boundary_of,
    dilate,
    global_measures,
    pixels_as_bits,
    score_frame,
    statistics,
)
from tests.reference import plain_davis as plain


def blob(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """An ellipse anywhere, also across the border, with ragged edges."""
    y, x = np.mgrid[: size[0], : size[1]]
    middle, radii = rng.uniform(0, 1, 2) * size, rng.uniform(1, 0.6 * min(size), 2)
    ragged = rng.normal(0, 0.15, size)
    return ((y - middle[0]) / radii[0]) ** 2 + ((x - middle[1]) / radii[1]) ** 2 + ragged < 1


def pairs() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(0)
    size = (31, 47)
    nothing, everything = np.zeros(size, bool), np.ones(size, bool)
    corner, far_corner, dot = nothing.copy(), nothing.copy(), nothing.copy()
    corner[:7, :9] = True
    far_corner[-7:, -9:] = True
    dot[-1, -1] = True
    cases = {
        "nothing, nothing": (nothing, nothing),
        "nothing, something": (nothing, corner),
        "something, nothing": (corner, nothing),
        "everything, everything": (everything, everything),
        "everything, something": (everything, far_corner),
        "nothing, everything": (nothing, everything),
        "corner, far corner": (corner, far_corner),
        "last pixel": (dot, far_corner),
        "last pixel alone": (dot, dot),
        "noise": (rng.random(size) < 0.5, rng.random(size) < 0.5),
        "one row": (rng.random((1, 40)) < 0.5, rng.random((1, 40)) < 0.5),
        "one column": (rng.random((40, 1)) < 0.5, rng.random((40, 1)) < 0.5),
        "one pixel": (np.ones((1, 1), bool), np.zeros((1, 1), bool)),
    }
    for i in range(30):
        size = tuple(rng.integers(8, 60, 2).tolist())
        cases[f"blobs {i}"] = (blob(rng, size), blob(rng, size))
    big = (150, 220)  # a tolerance of 3 pixels
    cases["near"] = (blob(rng, big), blob(rng, big))
    shifted = np.roll(cases["near"][0], (3, 2), axis=(0, 1))
    cases["shifted"] = (cases["near"][0], shifted)
    return cases


PAIRS = pairs()


def region_and_boundary(truth: np.ndarray, prediction: np.ndarray) -> tuple[float, float]:
    (region,), (boundary,) = score_frame(truth.astype(np.uint8), prediction.astype(np.uint8), 1)
    return region, boundary


@pytest.mark.parametrize("name", PAIRS)
def test_region_and_boundary_equal_a_restatement_over_the_whole_frame(name):
    truth, prediction = PAIRS[name]
    region, boundary = region_and_boundary(truth, prediction)
    assert region == pytest.approx(plain.region(truth, prediction), abs=1e-12)
    assert boundary == pytest.approx(plain.boundary_measure(truth, prediction), abs=1e-12)
    assert boundary == pytest.approx(plain.boundary_measure_by_distances(truth, prediction), abs=1e-12)


def test_values_known_by_hand():
    truth, prediction = np.zeros((2, 20, 30), bool)
    truth[5:15, 5:15], prediction[5:15, 10:20] = True, True
    region, boundary = region_and_boundary(truth, prediction)
    assert region == 50 / 150
    # Boundaries start half a pixel up and left: rows 4 to 14, columns 4 (or 9) to 14 (or 19), 40 pixels each. Of those,
    # up to one pixel apart (0.008 of the diagonal, rounded up): rows 4 and 14 from column 8 to 15 in either ...
    assert np.count_nonzero(boundary_of(truth)) == 40
    assert boundary == pytest.approx(plain.boundary_measure_by_distances(truth, prediction))
    assert 0 < boundary < 1
    assert region_and_boundary(truth, np.roll(truth, 1, axis=1))[1] == 1  # one pixel apart is no difference
    assert region_and_boundary(truth, np.roll(truth, 2, axis=1))[1] < 1


@pytest.mark.parametrize("radius", [0, 1, 2, 5])
def test_widening_by_a_disk_stays_in_its_row(radius):
    rng = np.random.default_rng(radius)
    mask = rng.random((9, 12)) < 0.05
    mask[4, [0, -1]] = True
    y, x = np.mgrid[:9, :12]
    expected = np.any([(y - row) ** 2 + (x - column) ** 2 <= radius**2 for row, column in np.argwhere(mask)], axis=0)
    width = 12 + radius
    found = dilate(pixels_as_bits(mask, width), radius, width)
    assert [[bool(found >> row * width + column & 1) for column in range(12)] for row in range(9)] == expected.tolist()


def test_void_and_objects_beyond_the_first_frames_are_background():
    rng = np.random.default_rng(1)
    truth, prediction = (rng.integers(0, 4, (20, 30)).astype(np.uint8) for _ in range(2))
    with_void = np.where(rng.random(truth.shape) < 0.2, 255, truth).astype(np.uint8)
    for true in (truth, with_void):
        regions, boundaries = score_frame(true, prediction, 2)
        for label in (1, 2):
            masks = true == label, prediction == label
            assert regions[label - 1] == pytest.approx(plain.region(*masks), abs=1e-12)
            assert boundaries[label - 1] == pytest.approx(plain.boundary_measure(*masks), abs=1e-12)
    # An object that is nowhere, neither truly nor predicted, is found perfectly.
    assert [scores.tolist() for scores in score_frame(truth * 0, truth * 0, 2)] == [[1, 1], [1, 1]]


@pytest.mark.parametrize("num_frames", [1, 2, 3, 4, 5, 8, 50, 101, 255, 256, 257, 300, 343, 500, 769, 1000, 1024])
def test_statistics_equal_a_restatement(num_frames):
    values = np.random.default_rng(num_frames).random(num_frames)
    assert statistics(values) == pytest.approx(plain.statistics(values.tolist()), abs=1e-12, nan_ok=True)


def test_decay_wraps_above_256_frames():
    falling = np.linspace(1, 0, 256)
    assert statistics(falling).decay == pytest.approx(0.75, abs=0.01)
    assert math.isnan(statistics(np.linspace(1, 0, 300)).decay)  # frames 224 to 299 - 256
    assert statistics(np.linspace(1, 0, 1024)).decay < 0.5  # 257 frames of the first quarter, and the 256th alone


def test_means_are_over_objects():
    rng = np.random.default_rng(2)
    objects = [ObjectScores(rng.random(n), rng.random(n)) for n in (3, 40, 7)]
    measures = global_measures(objects)
    assert list(measures) == ["J&F-Mean", "J-Mean", "J-Recall", "J-Decay", "F-Mean", "F-Recall", "F-Decay"]
    for name in ("J", "F"):
        expected = np.mean([plain.statistics(getattr(scores, name).tolist()) for scores in objects], axis=0)
        found = [measures[f"{name}-{kind}"] for kind in ("Mean", "Recall", "Decay")]
        assert found == pytest.approx(expected.tolist(), abs=1e-12)
    assert measures["J&F-Mean"] == pytest.approx(np.mean([s.J.mean() + s.F.mean() for s in objects]) / 2)
    undefined = global_measures([*objects, ObjectScores(rng.random(300), rng.random(300))])
    assert set(measures) - set(undefined) == {"J-Decay", "F-Decay"}
