"""DAVIS's measures in the plain form: every object of every frame over the whole frame, dilation by a disk.

The benchmark times this form; the toolkit computes it so.
"""

import math

import cv2
import numpy as np


def region(truth: np.ndarray, prediction: np.ndarray, void: np.ndarray | None = None) -> float:
    """J of two boolean masks, apart from void pixels."""
    counted = ~np.zeros_like(truth) if void is None else ~void
    union = np.sum((truth | prediction) & counted)
    return 1.0 if union == 0 else np.sum(truth & prediction & counted) / union


def boundary(mask: np.ndarray) -> np.ndarray:
    """A pixel is on the boundary when its east, south or south-east neighbour differs; any positive number is in."""
    mask = np.where(mask > 0, 1, 0).astype(bool)
    east, south, south_east = mask.copy(), mask.copy(), mask.copy()
    east[:, :-1] = mask[:, 1:]
    south[:-1] = mask[1:]
    south_east[:-1, :-1] = mask[1:, 1:]
    found = (mask != east) | (mask != south) | (mask != south_east)
    # At the last row and column the corner neighbour is outside.
    found[-1] = mask[-1] != east[-1]
    found[:, -1] = mask[:, -1] != south[:, -1]
    found[-1, -1] = False
    return found


def tolerance(shape: tuple[int, int]) -> int:
    return math.ceil(0.008 * np.linalg.norm(shape))


def boundary_measure(truth: np.ndarray, prediction: np.ndarray, void: np.ndarray | None = None) -> float:
    """F of two boolean masks, apart from void pixels."""
    counted = ~np.zeros_like(truth) if void is None else ~void
    radius = tolerance(truth.shape)
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    disk = (x * x + y * y <= radius * radius).astype(np.uint8)
    true, predicted = boundary(truth * counted), boundary(prediction * counted)
    near_true = cv2.dilate(true.astype(np.uint8), disk)
    near_predicted = cv2.dilate(predicted.astype(np.uint8), disk)
    return harmonic(np.sum(predicted * near_true), np.sum(predicted), np.sum(true * near_predicted), np.sum(true))


def boundary_measure_by_distances(truth: np.ndarray, prediction: np.ndarray) -> float:
    """The same from the definition: a pixel matches where the other boundary has one at most `tolerance` away."""
    radius = tolerance(truth.shape)
    true, predicted = np.argwhere(boundary(truth)), np.argwhere(boundary(prediction))
    near = np.linalg.norm(predicted[:, None] - true[None], axis=-1) <= radius
    return harmonic(near.any(axis=1).sum(), len(predicted), near.any(axis=0).sum(), len(true))


def harmonic(num_precise: int, num_predicted: int, num_recalled: int, num_true: int) -> float:
    if num_predicted == 0 and num_true == 0:
        return 1.0
    if num_predicted == 0 or num_true == 0:
        return 0.0
    precision, recall = num_precise / num_predicted, num_recalled / num_true
    return 0.0 if precision + recall == 0 else 2 * precision * recall / (precision + recall)


def objects_apart(labels: np.ndarray, num_objects: int) -> np.ndarray:
    """Label maps [T, H, W] as one boolean mask an object [O, T, H, W]."""
    numbers = np.ones((num_objects, *labels.shape)) * np.arange(1, num_objects + 1)[:, None, None, None]
    return numbers == labels


def score_video(truths: list[np.ndarray], predictions: list[np.ndarray]) -> list[tuple[list[float], list[float]]]:
    """J and F by frame of every object; label maps of all frames, the first and the last of which are not scored."""
    true_labels, predicted_labels = (np.stack(labels).astype(np.float64) for labels in (truths, predictions))
    true_labels[true_labels == 255] = 0
    num_objects = int(true_labels[0].max())
    true, predicted = (objects_apart(labels[1:-1], num_objects) for labels in (true_labels, predicted_labels))
    void = np.zeros_like(true[0])
    return [
        (
            [region(*of_frame) for of_frame in zip(*of_object, void, strict=True)],
            [boundary_measure(*of_frame) for of_frame in zip(*of_object, void, strict=True)],
        )
        for of_object in zip(true, predicted, strict=True)
    ]


def statistics(values: list[float]) -> tuple[float, float, float]:
    """Mean, recall and decay of one object; limits of the quarters are kept in 8 bits."""
    limits = [(math.floor(1 + i * (len(values) - 1) / 4 + 0.5 + 1e-10) - 1) % 256 for i in range(5)]
    first, last = values[limits[0] : limits[1] + 1], values[limits[3] : limits[4] + 1]
    decay = sum(first) / len(first) - sum(last) / len(last) if first and last else math.nan
    return sum(values) / len(values), sum(value > 0.5 for value in values) / len(values), decay
