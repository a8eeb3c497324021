"""What segmentation tasks come to: numbers over all validation images, and a few predictions to look at."""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from selfpatch.evaluation.datasets.labelled_images import LabelledImage, spread
from selfpatch.evaluation.datasets.segmentation import SegmentationData
from selfpatch.evaluation.metrics import confusion_matrix, segmentation_metrics

NUM_SHOWN = 8


class Prediction(NamedTuple):
    """Classes, or IGNORED in the truth, at the image's own size."""

    item: LabelledImage
    truth: UInt8[np.ndarray, "H W"]
    prediction: UInt8[np.ndarray, "H W"]


class SegmentationScores(NamedTuple):
    metrics: dict[str, float]
    predictions: list[Prediction]  # of NUM_SHOWN images, spread evenly over the split


class Scorer:
    """Counts pixels image by image."""

    def __init__(self, data: SegmentationData, device: torch.device):
        self._data = data
        self._confusion = torch.zeros(data.num_classes, data.num_classes, dtype=torch.int64, device=device)
        self._shown: dict[LabelledImage, Prediction | None] = dict.fromkeys(spread(data.val, NUM_SHOWN))

    def add(self, item: LabelledImage, truth: UInt8[np.ndarray, "H W"], prediction: Int[Tensor, "H W"]) -> None:
        on_device = torch.from_numpy(truth).to(prediction.device)
        self._confusion += confusion_matrix(prediction, on_device, self._data.num_classes)
        if item in self._shown:
            self._shown[item] = Prediction(item, truth, prediction.cpu().numpy().astype(np.uint8))

    def scores(self) -> SegmentationScores:
        metrics = segmentation_metrics(self._confusion, self._data.class_names)
        return SegmentationScores(metrics, [shown for shown in self._shown.values() if shown is not None])
