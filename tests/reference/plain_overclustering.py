"""Overclustering's scores with loops over pixels, and one iteration of k-means with loops over points."""

from itertools import permutations

import numpy as np

IGNORED = 255


def iou(pixels: list[tuple[int, int]], cluster_is, truth_is) -> float:
    """Of the pixels (cluster, class) that two conditions pick out."""
    both = sum(cluster_is(k) and truth_is(c) for k, c in pixels)
    either = sum(cluster_is(k) or truth_is(c) for k, c in pixels)
    return both / either if either else 0.0


def mean_iou(pixels: list[tuple[int, int]], class_of: list[int], num_classes: int) -> float:
    """Over the classes that are in the truth or are predicted."""
    present = [c for c in range(num_classes) if any(t == c or class_of[k] == c for k, t in pixels)]
    return sum(iou(pixels, lambda k, c=c: class_of[k] == c, lambda t, c=c: t == c) for c in present) / len(present)


def best_permutation(pixels: list[tuple[int, int]], num_classes: int) -> list[int]:
    """Every way to give each class one cluster is tried."""
    of_pair = [
        [iou(pixels, lambda k, i=i: k == i, lambda t, c=c: t == c) for c in range(num_classes)]
        for i in range(num_classes)
    ]
    return list(max(permutations(range(num_classes)), key=lambda p: sum(of_pair[k][c] for k, c in enumerate(p))))


def most_precise(pixels: list[tuple[int, int]], num_clusters: int, num_classes: int) -> list[int]:
    """Each cluster gets the class with the highest precision, the first of equal ones; class 0 if it has no pixel."""
    class_of = []
    for k in range(num_clusters):
        truths = [t for cluster, t in pixels if cluster == k]
        precisions = [truths.count(c) / len(truths) if truths else 0.0 for c in range(num_classes)]
        class_of.append(precisions.index(max(precisions)))
    return class_of


def scored(clusters: np.ndarray, truth: np.ndarray) -> list[tuple[int, int]]:
    return [(int(k), int(t)) for k, t in zip(clusters.ravel(), truth.ravel(), strict=True) if t != IGNORED]


def k_means_iteration(points: np.ndarray, centers: np.ndarray) -> tuple[np.ndarray, list[int]]:
    """New centres, and the cluster of each point before; every cluster must have a point."""
    labels = [int(np.argmin([((point - center) ** 2).sum() for center in centers])) for point in points]
    means = [
        np.mean([p for p, label in zip(points, labels, strict=True) if label == k], axis=0) for k in range(len(centers))
    ]
    return np.array(means), labels
