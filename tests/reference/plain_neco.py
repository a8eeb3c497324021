"""NeCo written out image by image and patch by patch, with a sorting network that is run comparison by comparison."""

import math
from typing import Any, NamedTuple

import torch

from tests.reference.plain_same_place import mean_token


def bitonic_comparisons(first, count, upwards):
    """Batcher's recursive definition: sort the halves in opposite directions, then merge them."""
    if count == 1:
        return []
    half = count // 2
    halves = bitonic_comparisons(first, half, True) + bitonic_comparisons(first + half, half, False)
    return halves + merge_comparisons(first, count, upwards)


def merge_comparisons(first, count, upwards):
    if count == 1:
        return []
    half = count // 2
    pairs = [(i, i + half) if upwards else (i + half, i) for i in range(first, first + half)]
    return pairs + merge_comparisons(first, half, upwards) + merge_comparisons(first + half, half, upwards)


def comparisons(kind, count):
    """(wire of the lower value, wire of the higher one), one after another."""
    if kind == "odd_even":
        return [(wire, wire + 1) for turn in range(count) for wire in range(turn % 2, count - 1, 2)]
    size = 1
    while size < count:
        size *= 2
    missing = size - count
    return [(a - missing, b - missing) for a, b in bitonic_comparisons(0, size, True) if min(a, b) >= missing]


def order_of(values, kind, steepness):
    """For every place of the order, how much of each value is there."""
    count = len(values)
    values, shares = list(values), [torch.eye(count)[wire].to(values[0].dtype) for wire in range(count)]
    for low, high in comparisons(kind, count):
        kept = 0.5 + torch.atan(steepness * (values[high] - values[low])) / math.pi
        for held in (values, shares):
            a, b = held[low], held[high]
            held[low], held[high] = kept * a + (1 - kept) * b, (1 - kept) * a + kept * b
    return torch.stack(shares)


class Crop(NamedTuple):
    """A crop of an image: unit vectors [N, Z] of its patches, and its edges in the image."""

    vectors: Any
    grid: tuple[int, int]
    box: Any


def shared_part(one, other):
    """(left, right), (top, bottom) of what two crops show of an image; None: less than 2 % of the smaller crop."""
    sides, sizes = [], [1.0, 1.0]
    for first in (0, 1):
        edges = [sorted((crop.box[first], crop.box[first + 2])) for crop in (one, other)]
        sides.append((max(a for a, _ in edges), min(b for _, b in edges)))
        sizes = [size * (b - a) for size, (a, b) in zip(sizes, edges, strict=True)]
    (left, right), (top, bottom) = sides
    return None if right <= left or bottom <= top or (right - left) * (bottom - top) < 0.02 * min(sizes) else sides


def on_grid(crop, part, size):
    """A crop's vectors on size x size places of a part of the image; of the whole crop where there is no such part."""
    (left, right), (top, bottom) = part or [(crop.box[0], crop.box[2]), (crop.box[1], crop.box[3])]
    return [
        mean_token(
            crop.vectors, crop.grid, crop.box,
            (left + (right - left) * column / size, left + (right - left) * (column + 1) / size),
            (top + (bottom - top) * row / size, top + (bottom - top) * (row + 1) / size),
        )
        for row in range(size) for column in range(size)
    ]  # fmt: skip


def neco_loss(student, teacher, config, orders):
    """Student and teacher are lists of views, each with a crop of every image; the teacher's are the first of them.

    `orders`: for each pair of views, which of the teacher's patches of the batch are references, image after image.
    """
    total, count, orders, size = 0.0, 0, iter(orders), config.overlap_size
    for g, theirs in enumerate(teacher):
        for v, ours in enumerate(student):
            if v == g:
                continue
            order = next(orders).tolist()
            parts = [shared_part(*crops) for crops in zip(ours, theirs, strict=True)]
            found = [on_grid(crop, part, size) for crop, part in zip(theirs, parts, strict=True)]
            patches = [patch for image in found for patch in image]
            for image, part in enumerate(parts):
                count += size**2
                if part is None:
                    continue
                references = [patches[i] for i in order[image * size**2 : (image + 1) * size**2]]
                for mine, other in zip(on_grid(ours[image], part, size), found[image], strict=True):
                    p, q = (
                        order_of(
                            [torch.cosine_similarity(patch, reference, dim=0) for reference in references],
                            config.sorting_network, steepness,
                        )
                        for patch, steepness in ((mine, config.student_steepness), (other, config.teacher_steepness))
                    )  # fmt: skip
                    total = total - (q * p.log()).sum() / size**2  # over places, and the mean over references
    return total / count
