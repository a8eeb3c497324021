"""Scores of segmentation tasks: metrics over all validation images, and a few predictions to look at."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Int64, Real, UInt8
from torch import Tensor

from selfpatch.evaluation.datasets.labeled_images import LabeledImage, spread
from selfpatch.evaluation.datasets.segmentation import SegmentationData
from selfpatch.evaluation.features import Backbone, keep_ratio_size, normalized, prefetch
from selfpatch.evaluation.metrics import IGNORED, confusion_matrix, segmentation_metrics
from selfpatch.evaluation.protocols.decoder_training import DecoderTraining
from selfpatch.evaluation.protocols.linear_segmentation import LinearSegmentation
from selfpatch.evaluation.segmentation.training_crops import rescale
from selfpatch.evaluation.task import EvalContext

NUM_SHOWN = 8
MAX_UPSAMPLED = 2**27  # numbers that maps of classes hold at full size at once: 512 MiB


class Prediction(NamedTuple):
    """Classes, or IGNORED, of every pixel."""

    item: LabeledImage
    truth: UInt8[np.ndarray, "H W"]
    prediction: UInt8[np.ndarray, "H W"]


class SegmentationScores(NamedTuple):
    metrics: dict[str, float]
    predictions: list[Prediction]  # of NUM_SHOWN images, spread evenly over the split
    details: dict[str, Any]  # for result.json
    overlaps: Int64[Tensor, "B 2 C"]  # per validation image: intersection and union of every class, in pixels


class ConfusionMeter:
    """Confusion matrix, filled image by image.

    Args:
        more_classes: names of classes that can be predicted beside those of the data.
        mean_over: see `segmentation_metrics`.
    """

    def __init__(
        self,
        data: SegmentationData,
        device: torch.device,
        *,
        more_classes: Sequence[str] = (),
        mean_over: Literal["occurring", "all"] = "occurring",
    ):
        self._num_classes = data.num_classes
        self._mean_over: Literal["occurring", "all"] = mean_over
        self._names = [*data.class_names, *more_classes]
        self._confusion = torch.zeros(len(self._names), len(self._names), dtype=torch.int64, device=device)
        self._overlaps: dict[LabeledImage, Int64[Tensor, "2 C"] | None] = dict.fromkeys(data.val)
        self._shown: dict[LabeledImage, Prediction | None] = dict.fromkeys(spread(data.val, NUM_SHOWN))

    def add(self, item: LabeledImage, truth: UInt8[np.ndarray, "H W"], prediction: Int[Tensor, "H W"]) -> None:
        on_device = torch.from_numpy(truth).to(prediction.device)
        confusion = confusion_matrix(prediction, on_device, len(self._names))
        self._confusion += confusion
        intersection = confusion.diagonal()
        union = confusion.sum(dim=0) + confusion.sum(dim=1) - intersection
        self._overlaps[item] = torch.stack([intersection, union]).cpu()
        if item in self._shown:
            prediction = torch.where(prediction < self._num_classes, prediction, IGNORED)
            self._shown[item] = Prediction(item, truth, prediction.cpu().numpy().astype(np.uint8))

    def scores(self, **details: Any) -> SegmentationScores:
        metrics = segmentation_metrics(self._confusion, self._names, mean_over=self._mean_over)
        shown = [prediction for prediction in self._shown.values() if prediction is not None]
        overlaps = torch.stack([of_image for of_image in self._overlaps.values() if of_image is not None])
        return SegmentationScores(metrics, shown, details, overlaps)


def evaluate_images(
    data: SegmentationData,
    backbone: Backbone,
    protocol: LinearSegmentation | DecoderTraining,
    predict_logits: Callable[[Float[Tensor, "_c H W"]], Float[Tensor, "C H W"]],
    context: EvalContext,
) -> SegmentationScores:
    """Scores of one model; see `evaluate_several`."""
    (meter,) = evaluate_several(data, backbone, protocol, lambda image: [predict_logits(image)], 1, context)
    return meter.scores()


@torch.no_grad()
def evaluate_several(
    data: SegmentationData,
    backbone: Backbone,
    protocol: LinearSegmentation | DecoderTraining,
    predict_logits: Callable[[Float[Tensor, "_c H W"]], Iterable[Float[Tensor, "C H W"]]],
    num_models: int,
    context: EvalContext,
) -> list[ConfusionMeter]:
    """Each validation image, normalised, through every model; logits go bilinearly to its own size, then argmax.

    Args:
        predict_logits: the logits of every model, in one order.
    """
    meters = [ConfusionMeter(data, context.device) for _ in range(num_models)]
    samples = prefetch(lambda item: (data.read_image(item), data.read_mask(item)), ([item] for item in data.val))
    for i, (item, [(image, truth)]) in enumerate(zip(data.val, samples, strict=True), start=1):
        pixels = network_input(image, backbone, protocol, context.device)
        for meter, logits in zip(meters, predict_logits(pixels), strict=True):
            meter.add(item, truth, upsampled_argmax(logits, truth.shape))
        context.report(i, len(data.val))
    return meters


def network_input(
    image: Real[np.ndarray, "H W _c"],
    backbone: Backbone,
    protocol: LinearSegmentation | DecoderTraining,
    device: torch.device,
) -> Float[Tensor, "_c R S"]:
    """An image at the protocol's size, its shape kept, normalized."""
    size = keep_ratio_size(image.shape[:2], protocol.image_size, protocol.long_side)
    resized = rescale(image, size, antialias=protocol.antialias)
    return normalized(torch.from_numpy(resized)[None].to(device), backbone.mean, backbone.std)[0]


def upsampled_argmax(maps: Float[Tensor, "C R S"], size: tuple[int, int]) -> Int[Tensor, "H W"]:
    """Class of the highest value of every pixel, the first of equal ones, after bilinear upsampling to (rows, columns).

    A few classes at a time: all 150 of a photograph of 12 megapixels would take 7 GB.
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
