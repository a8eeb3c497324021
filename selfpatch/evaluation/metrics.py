"""Semantic segmentation: scores from one confusion matrix over the pixels of a split, and losses."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Int64, UInt8
from torch import Tensor

from selfpatch.errors import UserError

IGNORED = 255  # the label of pixels that are not scored


def confusion_matrix(
    prediction: Int[Tensor, "*S"], truth: UInt8[Tensor, "*S"], num_classes: int
) -> Int64[Tensor, "C C"]:
    """Pixels counted by true class (rows) and predicted class (columns); pixels labelled IGNORED are left out."""
    # One bincount: ignored pixels fall into an extra row, which is dropped.
    truth = torch.where(truth == IGNORED, num_classes, truth.long())
    bins = (truth * num_classes + prediction).flatten()
    counts = torch.bincount(bins, minlength=(num_classes + 1) * num_classes)
    return counts.reshape(num_classes + 1, num_classes)[:num_classes]


def segmentation_metrics(
    confusion: Int64[Tensor, "C C"], class_names: Sequence[str], *, mean_over: Literal["occurring", "all"] = "occurring"
) -> dict[str, float]:
    """mIoU, aAcc and mAcc as mmsegmentation defines them, each class as "IoU/NAME", and the matched mIoU; in [0, 1].

    mIoU is the mean over classes that occur in truth or prediction, mAcc over those in truth; a class in neither has no
    "IoU/NAME". For mIoU-matched the predicted classes are first renamed one to one such that the sum of IoUs is largest
    (Hungarian method); it is a mean over as many classes as mIoU, so it can only be higher.

    Args:
        mean_over: "all" counts a class in neither as 0 in mIoU and mIoU-matched.

    Raises:
        UserError: no pixel is labelled.
    """
    counts = confusion.cpu().numpy().astype(np.float64)
    if not counts.any():
        raise UserError(
            "not one pixel of the validation masks carries a class, so there is nothing to score; check the masks"
        )
    correct, true, predicted = counts.diagonal(), counts.sum(axis=1), counts.sum(axis=0)
    occurs = true + predicted > 0
    num_averaged = len(counts) if mean_over == "all" else occurs.sum()
    pair_iou = iou_of_pairs(counts)
    iou = pair_iou.diagonal()
    from scipy.optimize import linear_sum_assignment  # nearly a second, and most metrics need none of it

    matched = pair_iou[linear_sum_assignment(pair_iou, maximize=True)]
    metrics = {
        "mIoU": iou.sum() / num_averaged,
        "mIoU-matched": matched.sum() / num_averaged,
        "aAcc": correct.sum() / counts.sum(),
        "mAcc": (correct[true > 0] / true[true > 0]).mean(),
    }
    metrics |= {f"IoU/{name}": iou[c] for c, name in enumerate(class_names) if occurs[c]}
    return {name: float(value) for name, value in metrics.items()}


def iou_of_pairs(counts: Float[np.ndarray, "C C"]) -> Float[np.ndarray, "C C"]:
    """IoU of every true class (rows) with every predicted class (columns); 0 where neither occurs."""
    union = counts.sum(axis=1, keepdims=True) + counts.sum(axis=0, keepdims=True) - counts
    return counts / np.maximum(union, 1)


def pixel_loss(logits: Float[Tensor, "B C R S"], masks: Int64[Tensor, "B H W"]) -> Float[Tensor, ""]:
    """Cross-entropy at the size of the masks: 0 for IGNORED pixels, and yet a mean over all of them.

    Source: mmsegmentation's CrossEntropyLoss with avg_non_ignore=False, its default, which DINOv2 and DINOv3 use too.
    """
    logits = F.interpolate(logits.float(), size=masks.shape[1:], mode="bilinear")
    return F.cross_entropy(logits, masks, ignore_index=IGNORED, reduction="sum") / masks.numel()


def mean_cross_entropy(logits: Float[Tensor, "B C H W"], masks: Int64[Tensor, "B H W"]) -> Float[Tensor, ""]:
    """Mean over the scored pixels; 0 where a batch has none, for which torch's own mean is nan."""
    loss = F.cross_entropy(logits, masks, ignore_index=IGNORED, reduction="sum")
    return loss / (masks != IGNORED).sum().clamp(min=1)
