"""mIoU, mAcc, aAcc and the matched mIoU, restated pixel by pixel and permutation by permutation."""

from itertools import permutations

import numpy as np

IGNORED = 255


def confusion_matrix(prediction: np.ndarray, truth: np.ndarray, num_classes: int) -> np.ndarray:
    counts = np.zeros((num_classes, num_classes), np.int64)
    for p, t in zip(prediction.ravel().tolist(), truth.ravel().tolist(), strict=True):
        if t != IGNORED:
            counts[t, p] += 1
    return counts


def segmentation_metrics(prediction: np.ndarray, truth: np.ndarray, num_classes: int) -> dict[str, float]:
    scored = [(p, t) for p, t in zip(prediction.ravel().tolist(), truth.ravel().tolist(), strict=True) if t != IGNORED]
    ious, accuracies = {}, []
    for c in range(num_classes):
        both = sum(p == c and t == c for p, t in scored)
        either = sum(p == c or t == c for p, t in scored)
        true = sum(t == c for _, t in scored)
        if either:
            ious[c] = both / either
        if true:
            accuracies.append(both / true)
    # Every renaming of predicted classes; the best sum of IoUs, over as many classes as occur without renaming.
    sums = []
    for renamed in permutations(range(num_classes)):
        total = 0.0
        for c in range(num_classes):
            both = sum(renamed[p] == c and t == c for p, t in scored)
            either = sum(renamed[p] == c or t == c for p, t in scored)
            total += both / either if either else 0.0
        sums.append(total)
    return {
        "mIoU": sum(ious.values()) / len(ious),
        "mIoU-matched": max(sums) / len(ious),
        "aAcc": sum(p == t for p, t in scored) / len(scored),
        "mAcc": sum(accuracies) / len(accuracies),
        **{f"IoU/{c}": iou for c, iou in ious.items()},
    }
