"""The patch-level objective written out crop by crop and patch by patch, in the slowest way."""

import math

import torch

from tests.reference.plain_selfpatch import aggregate, cross_entropy


def candidates_of(index, rows, columns, window, padding_mode):
    """The patches that may be positives of one patch."""
    if window == "image":
        return [other for other in range(rows * columns) if other != index]
    row, column = divmod(index, columns)
    found = []
    for r in range(row - window // 2, row + window // 2 + 1):
        for c in range(column - window // 2, column + window // 2 + 1):
            inside = 0 <= r < rows and 0 <= c < columns
            if (r, c) != (row, column) and (inside or padding_mode == "circular"):
                found.append((r % rows) * columns + c % columns)
    return found


def summary_of(tokens, index, grid, aggregator, config):
    """What the teacher's tokens [N, D] of one crop say that a patch is, normed."""
    if config.target == "self":
        return aggregator.norm(tokens[index])
    cosine = {
        other: float(tokens[index] @ tokens[other] / (tokens[index].norm() * tokens[other].norm()))
        for other in candidates_of(index, *grid, config.window_size, config.padding_mode)
    }
    best = sorted(cosine, key=lambda other: -cosine[other])[: config.num_positives]
    if config.aggregation == "class_attention":
        return aggregate(aggregator, tokens[best])
    if config.aggregation == "nearest":
        return aggregator.norm(tokens[best[0]])
    strength = [math.exp(cosine[other] / 0.1) if "weighted" in config.aggregation else 1.0 for other in best]
    mean = sum(s * tokens[other] for s, other in zip(strength, best, strict=True)) / sum(strength)
    return aggregator.norm(mean)


def patch_loss(crops, *, student, teacher, center, config):
    """Crops are (student's tokens [N, D], teacher's, grid, mask [N] or None), student and teacher (aggregator, head).

    -> loss, mean logit of the teacher.
    """
    (student_aggregator, student_head), (teacher_aggregator, teacher_head) = student, teacher
    losses, logits = [], []
    for student_tokens, teacher_tokens, grid, mask in crops:
        total, weights = 0.0, 0.0
        for index in range(len(student_tokens)):
            logit = teacher_head(summary_of(teacher_tokens, index, grid, teacher_aggregator, config)[None])[0]
            logits.append(logit)
            target = torch.softmax((logit - center) / config.distillation.teacher_temperature, dim=-1)
            prediction = student_head(student_aggregator.norm(student_tokens[index])[None])[0]
            is_masked = mask is not None and bool(mask[index])
            weight = config.masked_weight if is_masked else config.visible_weight
            total += weight * cross_entropy(target, prediction, config.distillation.student_temperature)
            weights += weight
        losses.append(total / weights if weights else torch.zeros(()))
    return sum(losses) / len(losses), torch.stack(logits).mean(dim=0)
