"""What tokens and assignments tell about places, counted one patch at a time."""

import math
from collections import Counter

import numpy as np


def plain_variance_shares(tokens: np.ndarray) -> tuple[float, float, float]:
    """Shares of place, image and rest of the squared distance from the mean: tokens [B, N, D]."""
    num_images, num_places, _ = tokens.shape
    mean = tokens.reshape(-1, tokens.shape[-1]).mean(axis=0)
    total = place = image = rest = 0.0
    for b in range(num_images):
        for n in range(num_places):
            of_place, of_image = tokens[:, n].mean(axis=0) - mean, tokens[b].mean(axis=0) - mean
            total += float(((tokens[b, n] - mean) ** 2).sum())
            place += float((of_place**2).sum())
            image += float((of_image**2).sum())
            rest += float(((tokens[b, n] - mean - of_place - of_image) ** 2).sum())
    return place / total, image / total, rest / total


def plain_information(assignment: np.ndarray) -> tuple[float, float]:
    """Entropy of the prototypes, and what they tell about places, in nats: assignment [B, N] of whole numbers."""
    pairs = [(n, int(assignment[b, n])) for b in range(len(assignment)) for n in range(assignment.shape[1])]
    joint, places, prototypes = Counter(pairs), Counter(n for n, _ in pairs), Counter(k for _, k in pairs)
    total = len(pairs)
    information = sum(
        count / total * math.log(count * total / (places[n] * prototypes[k])) for (n, k), count in joint.items()
    )
    return -sum(count / total * math.log(count / total) for count in prototypes.values()), information


def plain_loss_share(targets: np.ndarray) -> float:
    """By how much a predictor that knows the place beats one that knows nothing, over by how much one can: [B, N, K]."""
    nothing, place, best = [], [], []
    overall = targets.mean(axis=(0, 1))
    for b in range(targets.shape[0]):
        for n in range(targets.shape[1]):
            target, of_place = targets[b, n], targets[:, n].mean(axis=0)
            nothing.append(-sum(t * math.log(q) for t, q in zip(target, overall, strict=True) if t > 0))
            place.append(-sum(t * math.log(q) for t, q in zip(target, of_place, strict=True) if t > 0))
            best.append(-sum(t * math.log(t) for t in target if t > 0))
    return float((np.mean(nothing) - np.mean(place)) / (np.mean(nothing) - np.mean(best)))
