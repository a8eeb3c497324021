"""Classification scores from the rank of the true class of each image."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from selfpatch.evaluation.datasets.class_folder import ClassImage


def labels_of(items: Sequence[ClassImage], device: torch.device) -> Int64[Tensor, " B"]:
    return torch.tensor([item.label for item in items], device=device)


def ranks(scores: Float[Tensor, "B C"], labels: Int64[Tensor, " B"]) -> Int64[Tensor, " B"]:
    """Number of classes before the true one: those with higher scores, and of equal ones those of lower index."""
    of_truth = scores.gather(1, labels[:, None])
    is_earlier = torch.arange(scores.shape[1], device=scores.device) < labels[:, None]
    return ((scores > of_truth) | ((scores == of_truth) & is_earlier)).sum(dim=1)


def accuracies(ranks: Int64[Tensor, " B"], num_classes: int, suffix: str = "") -> dict[str, float]:
    """ "top-1" and, where there are more than five classes, "top-5"; each followed by the suffix."""
    tops = (1, 5) if num_classes > 5 else (1,)
    return {f"top-{k}{suffix}": int((ranks < k).sum()) / len(ranks) for k in tops}


def class_confusion(
    predicted: Int64[Tensor, " B"], labels: Int64[Tensor, " B"], num_classes: int
) -> Int64[np.ndarray, "C C"]:
    """Images by true (rows) and predicted class (columns)."""
    pairs = (labels * num_classes + predicted).cpu()
    return torch.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes).numpy()
