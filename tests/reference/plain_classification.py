"""Weighted nearest-neighbour classification with loops over images."""

import math

import numpy as np


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b) / math.sqrt(float(a @ a) * float(b @ b))


def ranked_classes(query, train, labels: list[int], k: int, num_classes: int, temperature: float) -> list[int]:
    """Classes that the k most similar training images vote for, the most voted first; others are left out."""
    nearest = sorted(range(len(train)), key=lambda i: -cosine(query, train[i]))[:k]
    votes = [0.0] * num_classes
    for i in nearest:
        votes[labels[i]] += math.exp(cosine(query, train[i]) / temperature)
    return sorted((c for c in range(num_classes) if votes[c] > 0), key=lambda c: -votes[c])


def top_share(ranked: list[list[int]], truth: list[int], count: int) -> float:
    return sum(label in classes[:count] for classes, label in zip(ranked, truth, strict=True)) / len(truth)
