"""DAVIS's measures of a segmented video, J (regions) and F (boundaries), exactly as its official toolkit counts them.

Axis letters of this file: O objects of a video, T scored frames.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8

BOUNDARY_TOLERANCE = 0.008  # how far two boundaries may be apart, in diagonals of the frame
RECALL_THRESHOLD = 0.5
NUM_BINS = 4  # of decay: the first quarter against the last


class ObjectScores(NamedTuple):
    """One object of a video over its scored frames."""

    J: Float[np.ndarray, "T"]
    F: Float[np.ndarray, "T"]


class Statistics(NamedTuple):
    mean: float
    recall: float
    decay: float  # nan where the toolkit gives nan (see `statistics`)


def score_frame(
    truth: UInt8[np.ndarray, "H W"], prediction: UInt8[np.ndarray, "H W"], num_objects: int
) -> tuple[Float[np.ndarray, "O"], Float[np.ndarray, "O"]]:
    """J and F of objects 1 to num_objects; every other label, 255 too, is background.

    J is intersection over union. F is the harmonic mean of two shares: of the predicted boundary that lies within the
    tolerance of the true one, and of the true boundary near the predicted one. Both are 1 where both masks are empty.
    """
    radius = math.ceil(BOUNDARY_TOLERANCE * math.hypot(*truth.shape))
    regions, boundaries = np.ones(num_objects), np.ones(num_objects)
    for label in range(1, num_objects + 1):
        box = box_around(truth, prediction, label)
        if box is None:
            continue
        true, predicted = truth[box] == label, prediction[box] == label
        regions[label - 1] = np.count_nonzero(true & predicted) / np.count_nonzero(true | predicted)
        boundaries[label - 1] = boundary_accuracy(boundary_of(true), boundary_of(predicted), radius)
    return regions, boundaries


def box_around(
    truth: UInt8[np.ndarray, "H W"], prediction: UInt8[np.ndarray, "H W"], label: int
) -> tuple[slice, slice] | None:
    """Rows and columns that hold the label in either mask, and one pixel more on every side; None: no pixel does.

    All boundaries lie in it, and what it leaves out is background in both: counts in the box are those of the frame.
    """
    boxes = [cv2.boundingRect((mask == label).view(np.uint8)) for mask in (truth, prediction)]
    corners = [(top, left, top + height, left + width) for left, top, width, height in boxes if width > 0]
    if not corners:
        return None
    top, left = np.min(corners, axis=0)[:2] - 1
    bottom, right = np.max(corners, axis=0)[2:] + 1
    return slice(max(top, 0), bottom), slice(max(left, 0), right)


def boundary_accuracy(truth: Bool[np.ndarray, "H W"], prediction: Bool[np.ndarray, "H W"], radius: int) -> float:
    """F of two boundaries, of which pixels up to `radius` apart match."""
    # Boundaries are single large integers, a pixel a bit: widening takes a third of the time of dilating images.
    width = truth.shape[1] + radius  # zeros at the end of rows keep what is shifted out of one from the next
    true, predicted = pixels_as_bits(truth, width), pixels_as_bits(prediction, width)
    if not true or not predicted:
        return float(true == predicted)
    precision = (predicted & dilate(true, radius, width)).bit_count() / predicted.bit_count()
    recall = (true & dilate(predicted, radius, width)).bit_count() / true.bit_count()
    return 2 * precision * recall / (precision + recall) if precision + recall > 0 else 0.0


def boundary_of(mask: Bool[np.ndarray, "H W"]) -> Bool[np.ndarray, "H W"]:
    """Pixels that differ from their neighbour to the east, south or south-east: one wide, half a pixel up and left.

    The last row looks east only, the last column south only, the last corner nowhere.
    """
    boundary = np.zeros_like(mask)
    boundary[:, :-1] = mask[:, :-1] ^ mask[:, 1:]
    boundary[:-1] |= mask[:-1] ^ mask[1:]
    boundary[:-1, :-1] |= mask[:-1, :-1] ^ mask[1:, 1:]
    return boundary


def pixels_as_bits(mask: Bool[np.ndarray, "H W"], width: int) -> int:
    """Bit y * width + x is pixel (y, x)."""
    padded = np.zeros((len(mask), width), bool)
    padded[:, : mask.shape[1]] = mask
    return int.from_bytes(np.packbits(padded, bitorder="little").tobytes(), "little")


def dilate(bits: int, radius: int, width: int) -> int:
    """All pixels at most `radius` away from one of these; those below the last row are set too.

    Row by row of the disk, from its narrow ends to its middle.
    """
    across, reach, result = bits, 0, 0
    for down in range(radius, -1, -1):
        while reach < math.isqrt(radius**2 - down**2):
            reach += 1
            across |= bits << reach | bits >> reach
        result |= across << down * width | across >> down * width
    return result


def statistics(per_frame: Float[np.ndarray, "T"]) -> Statistics:
    """Mean, recall (share of frames above 0.5) and decay (mean of the first quarter of frames less that of the last).

    The toolkit keeps the limits of the quarters in 8 bits, so that they wrap above 256 scored frames; decay is then of
    other quarters, or nan where the last one comes out empty. Numbers compare only if that is kept.
    """
    limits = np.round(np.linspace(1, len(per_frame), NUM_BINS + 1) + 1e-10).astype(np.int64) - 1
    limits %= 256
    first, last = (per_frame[limits[i] : limits[i + 1] + 1] for i in (0, NUM_BINS - 1))
    decay = first.mean() - last.mean() if len(first) and len(last) else math.nan
    return Statistics(float(per_frame.mean()), float((per_frame > RECALL_THRESHOLD).mean()), float(decay))


def global_measures(objects: Sequence[ObjectScores]) -> dict[str, float]:
    """J&F-Mean, then mean, recall and decay of J and of F: means over all objects of all videos, each object once.

    A decay that is not defined for one object is not defined at all, and left out.
    """
    measures = {}
    for name in ("J", "F"):
        per_object = np.array([statistics(getattr(scores, name)) for scores in objects])
        for kind, value in zip(("Mean", "Recall", "Decay"), per_object.mean(axis=0).tolist(), strict=True):
            if not math.isnan(value):
                measures[f"{name}-{kind}"] = value
    return {"J&F-Mean": (measures["J-Mean"] + measures["F-Mean"]) / 2} | measures
