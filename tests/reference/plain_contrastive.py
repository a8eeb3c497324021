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


def moby_loss(queries, keys, queues, temperature):
    """Queries and keys are a list a crop of a list an image of vectors, queues a list a crop of vectors; of two crops."""

    def cosine(a, b):
        return float(a @ b / (a.norm() * b.norm()))

    total = 0.0
    for crop, other in ((0, 1), (1, 0)):
        for query, key in zip(queries[crop], keys[other], strict=True):
            right = math.exp(cosine(query, key) / temperature)
            wrong = sum(math.exp(cosine(query, old) / temperature) for old in queues[other])
            total -= math.log(right / (right + wrong)) / len(queries[crop])
    return total


def hidden_norm_mlp(layers, rows):
    """Linear layers; batch norm and ReLU after all but the last: `layers` are (weight, bias, scale or None, shift)."""
    for weight, bias, scale, shift in layers:
        rows = rows @ weight.T + bias
        if scale is not None:
            mean, variance = rows.mean(dim=0), rows.var(dim=0, unbiased=False)
            rows = ((rows - mean) / (variance + 1e-5).sqrt() * scale + shift).clamp(min=0)
    return rows
