"""MoCo v3's loss written out query by query, from the paper, in the slowest way."""

import math


def moco_v3_loss(queries, keys, temperature):
    """Queries and keys are a list a crop of a list an image of vectors; of two crops."""
    total = 0.0
    for crop, other in ((0, 1), (1, 0)):
        losses = []
        for image, query in enumerate(queries[crop]):
            scores = [float(query @ key / (query.norm() * key.norm())) / temperature for key in keys[other]]
            losses.append(math.log(sum(math.exp(score) for score in scores)) - scores[image])
        total += 2 * temperature * sum(losses) / len(losses)
    return total


def mlp(layers, rows):
    """Linear layers with batch norm, ReLU between them; `layers` are (weight, scale or None, shift or None)."""
    for number, (weight, scale, shift) in enumerate(layers):
        rows = rows @ weight.T
        mean, variance = rows.mean(dim=0), rows.var(dim=0, unbiased=False)
        rows = (rows - mean) / (variance + 1e-5).sqrt()
        if scale is not None:
            rows = rows * scale + shift
        if number < len(layers) - 1:
            rows = rows.clamp(min=0)
    return rows
