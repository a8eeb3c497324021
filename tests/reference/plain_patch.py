"""The patch-level objective written out crop by crop and patch by patch, in the slowest way."""

import math
from typing import Any, NamedTuple

import torch

from tests.reference.plain_same_place import shown_by
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


class Crop(NamedTuple):
    """Tokens [N, D] of a crop, of the student and of the teacher."""

    student: Any
    teacher: Any
    grid: tuple[int, int]
    mask: Any = None
    searched: Any = None  # the teacher's, in which positives are found; None: those above
    box: Any = None


def summary_of(crop, index, aggregator, config):
    """What the teacher's tokens of one crop say that a patch is, normed."""
    tokens, grid = crop.teacher, crop.grid
    if config.target == "self":
        return aggregator.norm(tokens[index])
    searched = tokens if crop.searched is None else crop.searched
    cosine = {
        other: float(searched[index] @ searched[other] / (searched[index].norm() * searched[other].norm()))
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


def patch_loss(crops, *, student, teacher, center, config, num_images=None):
    """Crops, crop-major, of `num_images` images; student and teacher are (aggregator, head).

    -> loss, mean logit of the teacher.
    """
    (student_aggregator, student_head), (teacher_aggregator, teacher_head) = student, teacher
    losses, logits = [], []
    for number, crop in enumerate(crops):
        total, weights = 0.0, 0.0
        summaries = [summary_of(crop, index, teacher_aggregator, config) for index in range(len(crop.student))]
        shown = list(summaries)
        if config.view == "other":
            other = crops[(number + num_images) % len(crops)]
            theirs = [summary_of(other, index, teacher_aggregator, config) for index in range(len(crop.student))]
            shown = [shown_by(theirs, crop.grid, crop.box, other.box, index) for index in range(len(crop.student))]
        for index in range(len(crop.student)):
            counts = shown[index] is not None
            logit = teacher_head((shown[index] if counts else summaries[index])[None])[0]
            logits.append(logit)
            target = torch.softmax((logit - center) / config.distillation.teacher_temperature, dim=-1)
            prediction = student_head(student_aggregator.norm(crop.student[index])[None])[0]
            is_masked = crop.mask is not None and bool(crop.mask[index])
            weight = counts * (config.masked_weight if is_masked else config.visible_weight)
            total += weight * cross_entropy(target, prediction, config.distillation.student_temperature)
            weights += weight
        losses.append(total / weights if weights else torch.zeros(()))
    return sum(losses) / len(losses), torch.stack(logits).mean(dim=0)
