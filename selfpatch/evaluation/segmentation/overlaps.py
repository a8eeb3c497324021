"""Intersections and unions of every class per validation image, of which intervals are made; packed for JSON."""

import base64
import copy
import math
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from jaxtyping import Int

from selfpatch.backbones.backbone import Backbone
from selfpatch.evaluation.datasets.segmentation import SegmentationData
from selfpatch.evaluation.protocols.in_context_segmentation import InContextSegmentation
from selfpatch.evaluation.segmentation.in_context_segmentation import InContextEvaluator

MAX_GROUPS = 64  # of validation images that follow each other, whose overlaps are kept together: a quarter of the file
MAX_DRAWS = 4  # of a share of the labels, disjoint; their pixels are counted together

Score = dict[str, Any]  # "mIoU", a fraction, and "overlaps", packed


def from_overlaps(overlaps: Int[np.ndarray, "B 2 C"]) -> Score:
    """The mIoU of all images, and their overlaps in groups, packed."""
    intersection, union = overlaps.sum(axis=0)
    iou = intersection[union > 0] / union[union > 0]
    return {"mIoU": float(iou.mean()), "overlaps": pack(grouped(overlaps))}


def grouped(overlaps: Int[np.ndarray, "B 2 C"]) -> Int[np.ndarray, "G 2 C"]:
    """Sums over images that follow each other, at most MAX_GROUPS of them."""
    size = math.ceil(len(overlaps) / MAX_GROUPS)
    return np.add.reduceat(overlaps, np.arange(0, len(overlaps), size))


def pack(overlaps: Int[np.ndarray, "G 2 C"]) -> dict[str, Any]:
    """As JSON holds them; `unpack` is the way back."""
    data = zlib.compress(overlaps.astype("<i4").tobytes(), 9)
    return {"shape": list(overlaps.shape), "zlib_int32": base64.b64encode(data).decode()}


def unpack(packed: dict[str, Any]) -> Int[np.ndarray, "G 2 C"]:
    """What `pack` packed."""
    data = zlib.decompress(base64.b64decode(packed["zlib_int32"]))
    return np.frombuffer(data, "<i4").reshape(packed["shape"]).astype(np.int64)


def label_subset(data: SegmentationData, stride: int, offset: int = 0) -> SegmentationData:
    """The data with every `stride`-th training image alone, from the one numbered `offset` on."""
    part = copy.copy(data)
    part.train = data.train[offset::stride]
    return part


def in_context_at_share(
    data: SegmentationData, protocol: InContextSegmentation, stride: int, *, patch_size: tuple[int, int]
) -> Callable[[Backbone, torch.device], Score]:
    """In-context segmentation with one `stride`-th of the training images, by up to MAX_DRAWS disjoint draws of them.

    Every validation image is scored with each draw, and pixels of all draws are counted together; the number of draws
    is kept as "label_sets". The patches that draws remember are chosen when the first backbone comes.
    """
    parts = [label_subset(data, stride, offset) for offset in range(min(stride, MAX_DRAWS, len(data.train)))]
    evaluators: list[InContextEvaluator] = []

    def score(backbone: Backbone, device: torch.device) -> Score:
        if not evaluators:
            evaluators.extend(InContextEvaluator(part, protocol, patch_size=patch_size) for part in parts)
        overlaps = torch.stack([evaluator(backbone, device=device).overlaps for evaluator in evaluators]).sum(dim=0)
        return from_overlaps(overlaps.numpy()) | {"label_sets": len(evaluators)}

    return score
