"""In-context segmentation: labels by the nearest labeled patches; nothing is trained, so a score costs two passes."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from selfpatch.errors import UserError
from selfpatch.evaluation.class_bars import write_class_bars
from selfpatch.evaluation.datasets.labeled_images import LabeledImage
from selfpatch.evaluation.datasets.segmentation import SegmentationData, read_segmentation
from selfpatch.evaluation.features import (
    Backbone,
    ReadCache,
    RowBuffer,
    batches,
    eval_mode,
    input_size,
    normalized,
    patch_features,
    prefetch,
    resize_image,
    resize_mask,
)
from selfpatch.evaluation.metrics import IGNORED
from selfpatch.evaluation.protocols.in_context_segmentation import InContextSegmentation
from selfpatch.evaluation.segmentation.prediction_pictures import write_prediction_sheets
from selfpatch.evaluation.segmentation.segmentation_scores import ConfusionMeter, SegmentationScores, upsampled_argmax
from selfpatch.evaluation.task import EvalContext, EvalOutput, ProgressFn, no_progress

MAX_CHUNK = 2**26  # numbers that the nearest-patch search holds at once: 256 MiB


def run(backbone: Backbone, root: Path, protocol: InContextSegmentation, context: EvalContext) -> EvalOutput:
    data = read_segmentation(root, max_images=protocol.max_images, report=context.report, pixels=backbone.pixels)
    evaluator = InContextEvaluator(data, protocol, patch_size=backbone.patch_size)
    scores = evaluator(backbone, device=context.device, report=context.report)
    write_prediction_sheets(scores.predictions, data, context.pictures)
    write_class_bars(scores.metrics, context.pictures)
    return EvalOutput(scores.metrics, data.describe())


class MemoryEntry(NamedTuple):
    """Patches of one training image that the memory holds."""

    patches: Int[np.ndarray, "P"]  # indices into the image's grid, row-major
    labels: Float[np.ndarray, "P C"]  # fraction of each class among the labeled pixels of a patch


class InContextEvaluator:
    """Evaluator for any number of backbones: the patches of the memory are chosen once, from the masks alone.

    Every training image contributes the same number of patches, those of classes that are rare in the image first. A
    validation patch gets the labels of its most similar patches in memory, weighted by a softmax over their cosines;
    labels are upsampled bilinearly to the size of the mask.

    Raises:
        UserError: the memory has less than one patch per training image, or fewer patches than num_neighbors.

    Source: Towards In-context Scene Understanding (NeurIPS 2023); vpariza/open-hummingbird-eval.
    Differs: see `InContextSegmentation.differs`.
    """

    def __init__(self, data: SegmentationData, protocol: InContextSegmentation, *, patch_size: tuple[int, int]):
        self.data, self.protocol, self.patch_size = data, protocol, patch_size
        per_image = protocol.memory_size // len(data.train)
        if per_image == 0:
            raise UserError(
                f"memory-size is {protocol.memory_size} for {len(data.train)} training images, less than a patch an "
                "image; make it larger, or limit the images (max-images)"
            )
        # The program's class 0: background or whatever comes first, but in ADE20K everything that is not scored.
        has_own_class = protocol.void == "class_0" and data.leaves_out_label_0
        self._more_classes = ["label 0"] if has_own_class else []
        self._void_class = data.num_classes if has_own_class else 0
        num_classes = data.num_classes + len(self._more_classes)
        self._remembered: dict[LabeledImage, MemoryEntry] = {}
        for index, (item, mask) in enumerate(zip(data.train, self._resized_masks(), strict=True)):
            labels, is_scored = patch_label_distribution(mask, patch_size, num_classes)
            rng = np.random.default_rng((protocol.seed, index))
            patches = sample_patches(labels, is_scored, per_image, rng)
            self._remembered[item] = MemoryEntry(patches, labels[patches])
        self._num_remembered = sum(len(remembered.patches) for remembered in self._remembered.values())
        if self._num_remembered < protocol.num_neighbors:
            raise UserError(
                f"num-neighbors is {protocol.num_neighbors}, but the memory holds {self._num_remembered} labelled "
                f"patches of {len(data.train)} training images; lower it, or enlarge memory-size or image-size"
            )
        self._read_image = ReadCache(lambda item: (resize_image(data.read_image(item), self._input_size(item)),))
        self._read_mask = ReadCache(lambda item: (self._scored_mask(item),))

    def __call__(
        self, backbone: Backbone, *, device: torch.device | str = "cpu", report: ProgressFn = no_progress
    ) -> SegmentationScores:
        data, protocol = self.data, self.protocol
        device = torch.device(device)
        total = len(data.train) + len(data.val)
        done = 0
        with eval_mode(backbone):
            # 1. Memory: unit vectors and their labels.
            keys, key_labels = RowBuffer(self._num_remembered), RowBuffer(self._num_remembered)
            for items, maps in self._encode(backbone, data.train, device):
                tokens = F.normalize(maps.flatten(2).transpose(1, 2), dim=-1)  # [B, N, D]
                for item, image_tokens in zip(items, tokens, strict=True):
                    remembered = self._remembered[item]
                    keys.add(image_tokens[torch.from_numpy(remembered.patches).to(device)])
                    key_labels.add(torch.from_numpy(remembered.labels).to(device))
                done += len(items)
                report(done, total)

            # 2. Every validation patch looks up its labels.
            meter = ConfusionMeter(data, device, more_classes=self._more_classes, mean_over=protocol.mean_over)
            for items, maps in self._encode(backbone, data.val, device):
                queries = F.normalize(maps.flatten(2).transpose(1, 2), dim=-1).flatten(0, 1)
                labels = nearest_labels(
                    queries, keys.rows, key_labels.rows, protocol.num_neighbors, temperature=protocol.temperature
                )
                label_maps = labels.unflatten(0, (len(items), -1)).transpose(1, 2).unflatten(2, maps.shape[2:])
                for item, label_map in zip(items, label_maps, strict=True):
                    (truth,) = self._read_mask(item)
                    meter.add(item, truth, argmax_of_present_classes(label_map, truth.shape))
                done += len(items)
                report(done, total)
        scores = meter.scores()
        headline = "mIoU" if protocol.headline == "direct" else "mIoU-matched"
        return scores._replace(metrics={headline: scores.metrics[headline]} | scores.metrics)

    def _input_size(self, item: LabeledImage) -> tuple[int, int]:
        return input_size(item.size, self.protocol.image_size, self.patch_size, resize=self.protocol.resize)

    def _scored_mask(self, item: LabeledImage) -> UInt8[np.ndarray, "H W"]:
        mask = self.data.read_mask(item)
        return resize_mask(mask, self._input_size(item)) if self.protocol.score_size == "input" else mask

    def _resized_masks(self) -> Iterator[UInt8[np.ndarray, "H W"]]:
        def read(item: LabeledImage) -> UInt8[np.ndarray, "H W"]:
            mask = resize_mask(self.data.read_mask(item), self._input_size(item))
            return mask if self.protocol.void == "left_out" else np.where(mask == IGNORED, self._void_class, mask)

        for masks in prefetch(read, batches(self.data.train, self.protocol.batch_size)):
            yield from masks

    def _encode(
        self, backbone: Backbone, items: list[LabeledImage], device: torch.device
    ) -> Iterator[tuple[list[LabeledImage], Float[Tensor, "B D R S"]]]:
        """Feature maps of images of one size at a time."""
        by_size: dict[tuple[int, int], list[LabeledImage]] = {}
        for item in items:
            by_size.setdefault(self._input_size(item), []).append(item)
        of_one_size = [list(batch) for same in by_size.values() for batch in batches(same, self.protocol.batch_size)]
        for batch, images in zip(of_one_size, prefetch(self._read_image, iter(of_one_size)), strict=True):
            pixels = torch.from_numpy(np.stack([image for (image,) in images])).to(device)
            mean, std = self.protocol.mean or backbone.mean, self.protocol.std or backbone.std
            if len(mean) != backbone.num_channels:
                raise UserError(
                    f"this protocol normalizes {len(mean)} channels, and {backbone.architecture.name} reads "
                    f"{backbone.num_channels}; leave mean and std to the model (another preset)"
                )
            yield batch, patch_features(backbone, normalized(pixels, mean, std))


def patch_label_distribution(
    mask: UInt8[np.ndarray, "H W"], patch_size: tuple[int, int], num_classes: int
) -> tuple[Float[np.ndarray, "N C"], np.ndarray]:
    """Fraction of each class among the labeled pixels of every patch, and whether a patch has any."""
    rows, columns = mask.shape[0] // patch_size[0], mask.shape[1] // patch_size[1]
    patch = np.arange(rows * columns).reshape(rows, columns).repeat(patch_size[0], axis=0).repeat(patch_size[1], axis=1)
    label = np.where(mask == IGNORED, num_classes, mask).astype(np.int64)  # an extra class, dropped
    bins = (patch * (num_classes + 1) + label).ravel()
    counts = np.bincount(bins, minlength=rows * columns * (num_classes + 1))
    counts = counts.reshape(rows * columns, num_classes + 1)[:, :num_classes]
    num_scored = counts.sum(axis=1)
    return (counts / np.maximum(num_scored, 1)[:, None]).astype(np.float32), num_scored > 0


def sample_patches(
    labels: Float[np.ndarray, "N C"], is_scored: np.ndarray, num_patches: int, rng: np.random.Generator
) -> Int[np.ndarray, "P"]:
    """Importance sampling of at most num_patches labeled patches of an image: those of rare classes come first.

    The score of a patch is the number of patches that share a class with it, summed over its classes, times a uniform
    random number; the lowest scores are taken.
    """
    has_class = (labels > 0).astype(np.int64)
    frequency = has_class.sum(axis=0)
    score = has_class @ frequency * rng.random(len(labels))
    score[~is_scored] = np.inf
    return np.argsort(score, kind="stable")[: min(num_patches, is_scored.sum())]


def nearest_labels(
    queries: Float[Tensor, "Q D"],
    memory: Float[Tensor, "M D"],
    memory_labels: Float[Tensor, "M C"],
    num_neighbors: int,
    *,
    temperature: float,
) -> Float[Tensor, "Q C"]:
    """Labels of the most similar entries of the memory, weighted by softmax(cosine / temperature).

    Args:
        queries, memory: unit vectors.
    """
    chunk_size = max(1, MAX_CHUNK // (len(memory) + num_neighbors * memory_labels.shape[1]))
    labels = []
    for chunk in queries.split(chunk_size):
        cosine, nearest = (chunk @ memory.T).topk(num_neighbors, dim=-1)
        weight = (cosine / temperature).softmax(dim=-1)
        labels.append(torch.einsum("qk,qkc->qc", weight, memory_labels[nearest]))
    return torch.cat(labels)


def argmax_of_present_classes(label_map: Float[Tensor, "C R S"], size: tuple[int, int]) -> Int[Tensor, "H W"]:
    """Most likely class of every pixel, after bilinear upsampling to (rows, columns)."""
    # A class that no patch of the image has cannot win, and most of 150 classes are such.
    (present,) = label_map.amax(dim=(1, 2)).nonzero(as_tuple=True)
    return present[upsampled_argmax(label_map[present], size)]
