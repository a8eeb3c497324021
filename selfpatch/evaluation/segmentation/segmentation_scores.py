"""What segmentation tasks come to: numbers over all validation images, and a few predictions to look at."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from selfpatch.evaluation.datasets.labeled_images import LabeledImage, spread
from selfpatch.evaluation.datasets.segmentation import SegmentationData
from selfpatch.evaluation.features import Backbone, normalized, prefetch
from selfpatch.evaluation.metrics import confusion_matrix, segmentation_metrics
from selfpatch.evaluation.protocols.decoder_training import DecoderTraining
from selfpatch.evaluation.protocols.linear_segmentation import LinearSegmentation
from selfpatch.evaluation.segmentation.training_crops import keep_ratio_size, rescale
from selfpatch.evaluation.task import Context

NUM_SHOWN = 8
MAX_UPSAMPLED = 2**27  # numbers that maps of classes hold at full size at once: 512 MiB


class Prediction(NamedTuple):
    """Classes, or IGNORED in the truth, at the image's own size."""

    item: LabeledImage
    truth: UInt8[np.ndarray, "H W"]
    prediction: UInt8[np.ndarray, "H W"]


class SegmentationScores(NamedTuple):
    metrics: dict[str, float]
    predictions: list[Prediction]  # of NUM_SHOWN images, spread evenly over the split


class ConfusionMeter:
    """Counts pixels image by image."""

    def __init__(self, data: SegmentationData, device: torch.device):
        self._data = data
        self._confusion = torch.zeros(data.num_classes, data.num_classes, dtype=torch.int64, device=device)
        self._shown: dict[LabeledImage, Prediction | None] = dict.fromkeys(spread(data.val, NUM_SHOWN))

    def add(self, item: LabeledImage, truth: UInt8[np.ndarray, "H W"], prediction: Int[Tensor, "H W"]) -> None:
        on_device = torch.from_numpy(truth).to(prediction.device)
        self._confusion += confusion_matrix(prediction, on_device, self._data.num_classes)
        if item in self._shown:
            self._shown[item] = Prediction(item, truth, prediction.cpu().numpy().astype(np.uint8))

    def scores(self) -> SegmentationScores:
        metrics = segmentation_metrics(self._confusion, self._data.class_names)
        return SegmentationScores(metrics, [shown for shown in self._shown.values() if shown is not None])


@torch.no_grad()
def evaluate_images(
    data: SegmentationData,
    backbone: Backbone,
    protocol: LinearSegmentation | DecoderTraining,
    predict_logits: Callable[[Float[Tensor, "3 H W"]], Float[Tensor, "C H W"]],
    context: Context,
) -> SegmentationScores:
    """Every validation image, normalised, through `predict_logits`; bilinear to its own size, then argmax."""
    scorer = ConfusionMeter(data, context.device)
    samples = prefetch(lambda item: (data.read_image(item), data.read_mask(item)), ([item] for item in data.val))
    for i, (item, [(image, truth)]) in enumerate(zip(data.val, samples, strict=True), start=1):
        size = keep_ratio_size(truth.shape, protocol.image_size, protocol.long_side)
        resized = rescale(image, size, antialias=protocol.antialias)
        pixels = normalized(torch.from_numpy(resized)[None].to(context.device), backbone.mean, backbone.std)[0]
        scorer.add(item, truth, upsampled_argmax(predict_logits(pixels), truth.shape))
        context.report(i, len(data.val))
    return scorer.scores()


def upsampled_argmax(maps: Float[Tensor, "C R S"], size: tuple[int, int]) -> Int[Tensor, "H W"]:
    """The class of the highest value of every pixel, the first of equal ones; bilinear to (rows, columns).

    A few classes at a time: 150 of a photograph of 12 megapixels would be 7 GB.
    """
    at_once = max(1, MAX_UPSAMPLED // (size[0] * size[1]))
    highest = maps.new_full(size, -torch.inf)
    winner = torch.zeros(size, dtype=torch.int64, device=maps.device)
    for start in range(0, len(maps), at_once):
        chunk = maps[None, start : start + at_once]
        value, index = F.interpolate(chunk, size=size, mode="bilinear", align_corners=False)[0].max(dim=0)
        winner = torch.where(value > highest, start + index, winner)
        highest = torch.maximum(highest, value)
    return winner
