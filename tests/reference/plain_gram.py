"""Gram anchoring written out pair by pair of patches."""

import math


def cosine(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True)) / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))


def gram_loss(student: list[list[list[float]]], gram_teacher: list[list[list[float]]]) -> float:
    """Mean over crops and pairs of patches, given as [crop][patch][number]."""
    differences = [
        (cosine(patches[i], patches[j]) - cosine(anchors[i], anchors[j])) ** 2
        for patches, anchors in zip(student, gram_teacher, strict=True)
        for i in range(len(patches))
        for j in range(len(patches))
    ]
    return sum(differences) / len(differences)


def gram_teacher_steps(num_steps: int, *, copied: int, start: int, refresh: int | None) -> list[int | None]:
    """For every step, the step whose teacher is the Gram teacher in it, by walking through all of them."""
    current, found = None, []
    for step in range(num_steps):
        if step == copied or (refresh and step > start and (step - start) % refresh == 0):
            current = step
        found.append(current)
    return found
