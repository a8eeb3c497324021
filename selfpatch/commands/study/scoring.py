"""Scores of a candidate: in-context and linear segmentation at several shares of the labels, on the same images."""

import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from selfpatch.backbones.backbone import Backbone
from selfpatch.config import PixelFormat
from selfpatch.config.io import to_dict
from selfpatch.config.study import StudyConfig
from selfpatch.errors import UserError
from selfpatch.evaluation.datasets.labeled_images import LabeledImage
from selfpatch.evaluation.datasets.segmentation import SegmentationData, read_segmentation
from selfpatch.evaluation.feature_cache import CachedBackbone
from selfpatch.evaluation.metrics import IGNORED
from selfpatch.evaluation.protocols.in_context_segmentation import InContextSegmentation
from selfpatch.evaluation.protocols.linear_segmentation import LinearSegmentation
from selfpatch.evaluation.segmentation.linear_segmentation import evaluate_linear_segmentation
from selfpatch.evaluation.segmentation.overlaps import Score, from_overlaps, in_context_at_share, label_subset
from selfpatch.evaluation.task import EvalContext

# Labeled images without which a share of the labels is left out.
MIN_LABELED = 2
LINEAR_BATCH = 8
CACHE_BYTES = 2e9

# (backbone, folder for what goes on after a cut) -> score
Scorer = Callable[[Backbone, Path], Score]


class Protocols(NamedTuple):
    """How both tasks score; the same for all candidates."""

    in_context: InContextSegmentation
    linear: LinearSegmentation

    @classmethod
    def at_size(cls, image_size: int, config: StudyConfig) -> "Protocols":
        """
        Args:
            image_size: short side of the images in pixels.
        """
        memory_size = max(10_240, 20 * config.max_images)
        return cls(
            InContextSegmentation(image_size=image_size, resize="keep_aspect", memory_size=memory_size),
            LinearSegmentation(
                image_size=image_size, stride=max(2 * image_size // 3, 1), steps=config.linear_steps,
                batch_size=LINEAR_BATCH, warmup_steps=config.linear_steps // 10, photometric_style="mmseg",
                eval_interval=None,
            ),
        )  # fmt: skip

    def as_json(self) -> dict[str, Any]:
        return {"in-context": to_dict(self.in_context), "linear": to_dict(self.linear)}


def share_name(share: int) -> str:
    return "1" if share == 1 else f"1/{share}"


class Scoring:
    """The scorers of every kind of backbone (patch size, format of images), which all have the same names.

    Raises:
        UserError: the labeled images are not complete and consistent, or hold no label.
    """

    def __init__(self, labels: Path, config: StudyConfig, protocols: Protocols, device: torch.device):
        self.protocols = protocols
        self.class_names: list[str] = []  # known when the labels have been read
        self._labels, self._config, self._device = labels, config, device
        self._scorers: dict[tuple[tuple[int, int], PixelFormat], dict[str, Scorer]] = {}

    def prepare(self, backbones: Sequence[tuple[tuple[int, int], PixelFormat]]) -> list[str]:
        """Read the labels for backbones of these patch sizes and formats; returns the names of the scores."""
        for patch_size, pixels in backbones:
            if (patch_size, pixels) not in self._scorers:
                data = read_labels(self._labels, self._config, pixels)
                self._scorers[patch_size, pixels] = self._make(data, patch_size)
                self.class_names = list(data.class_names)
        by_backbone = list(self._scorers.values())
        return [name for name in by_backbone[0] if all(name in scorers for scorers in by_backbone)]

    def scorers(self, backbone: Backbone) -> dict[str, Scorer]:
        self.prepare([(backbone.patch_size, backbone.pixels)])  # known, unless its file says otherwise than its run
        return self._scorers[backbone.patch_size, backbone.pixels]

    def cached(self, backbone: Backbone, folder: Path) -> CachedBackbone:
        """The backbone, which encodes images once for all scores."""
        return CachedBackbone(backbone, folder, max_bytes=CACHE_BYTES)

    def _make(self, data: SegmentationData, patch_size: tuple[int, int]) -> dict[str, Scorer]:
        in_context: dict[str, Scorer] = {}
        linear: dict[str, Scorer] = {}
        for share in sorted(self._config.label_shares):
            if share > 1 and len(data.train) // share < MIN_LABELED:
                continue
            try:
                score = in_context_at_share(data, self.protocols.in_context, share, patch_size=patch_size)
            except UserError:  # too few labeled patches for its neighbors
                if share == 1:
                    raise
                continue
            part = label_subset(data, share)
            in_context[f"in-context {share_name(share)}"] = lambda backbone, _, score=score: score(
                backbone, self._device
            )
            linear[f"linear {share_name(share)}"] = lambda backbone, folder, part=part: self._linear(
                backbone, part, folder
            )
        return in_context | linear

    def _linear(self, backbone: Backbone, data: SegmentationData, folder: Path) -> Score:
        context = EvalContext(folder, self._device)
        scores = evaluate_linear_segmentation(backbone, data, self.protocols.linear, context)
        return from_overlaps(scores.overlaps.numpy()) | {"label_sets": 1}

    def time_image(self, backbone: Backbone) -> float:
        """Seconds to encode one image at the size at which images are scored, from the second of two batches."""
        size = [max(self.protocols.in_context.image_size // patch, 1) * patch for patch in backbone.patch_size]
        images = torch.zeros(LINEAR_BATCH, backbone.num_channels, *size, device=self._device)
        seconds = 0.0
        with torch.inference_mode():
            for _ in range(2):
                start = time.perf_counter()
                backbone(images)
                if self._device.type == "cuda":
                    torch.cuda.synchronize(self._device)
                seconds = time.perf_counter() - start
        return seconds / LINEAR_BATCH


def read_labels(labels: Path, config: StudyConfig, pixels: PixelFormat) -> SegmentationData:
    """
    Raises:
        UserError: as `read_segmentation`, or not one pixel of a split has a label.
    """
    data = read_segmentation(labels, max_images=config.max_images, pixels=pixels)
    require_labels(data, data.train, "training", labels)
    require_labels(data, data.val, "validation", labels)
    return data


def require_labels(data: SegmentationData, items: list[LabeledImage], split: str, labels: Path) -> None:
    if not any((data.read_mask(item) != IGNORED).any() for item in items):
        raise UserError(
            f"none of the {len(items)} {split} images in {labels} has a labeled pixel: all of their masks are left out "
            "of scores (255, or 0 where classes are numbered from 1); check the masks"
        )


def num_encoded(config: StudyConfig, num_train: int, num_val: int, columns: Sequence[str]) -> float:
    """Images that the scores of one candidate encode: once for in-context, in windows for linear, and its crops."""
    num_linear = sum(name.startswith("linear") for name in columns)
    return num_train + 2.5 * num_val + num_linear * config.linear_steps * LINEAR_BATCH


def feature_folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="features-")
