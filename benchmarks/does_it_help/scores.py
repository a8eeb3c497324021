"""Scores of one backbone: in-context at shares of the labels, linear, overclustering, k-NN; slower tasks if asked for.

Every score is a dict of fractions in [0, 1]; those of segmentation also have "overlaps", intersection and union of
every class in every few validation images, packed, of which intervals over images are made.
"""

import copy
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image

from benchmarks.does_it_help.regimes import Sizes
from selfpatch.backbones.backbone import Backbone
from selfpatch.evaluation.datasets.segmentation import SegmentationData, read_segmentation
from selfpatch.evaluation.feature_cache import CachedBackbone, unwrap_cache
from selfpatch.evaluation.metrics import IGNORED
from selfpatch.evaluation.protocols import TASKS
from selfpatch.evaluation.protocols.in_context_segmentation import InContextSegmentation
from selfpatch.evaluation.protocols.knn_classification import KnnClassification
from selfpatch.evaluation.protocols.linear_segmentation import LinearSegmentation
from selfpatch.evaluation.protocols.overclustering import Overclustering
from selfpatch.evaluation.segmentation.linear_segmentation import evaluate_linear_segmentation
from selfpatch.evaluation.segmentation.overlaps import Score, from_overlaps, in_context_at_share
from selfpatch.evaluation.segmentation.segmentation_scores import SegmentationScores
from selfpatch.evaluation.task import EvalContext
from selfpatch.evaluation.tasks import run_task

LABEL_SHARES = {"in-context 1": 1, "in-context 1/8": 8, "in-context 1/64": 64}
SLOW = {
    "davis": "video-segmentation",
    "lost": "object-discovery",
    "semantic-fpn": "semantic-fpn",
    "mask-rcnn": "mask-rcnn",
}
SMALLEST_REGION = 0.02  # of an image, to be one for k-NN
LARGEST_SIDES = 0.8


def protocols(sizes: Sizes) -> dict[str, Any]:
    """Protocol of every frozen score."""
    size = sizes.image_size
    in_context = InContextSegmentation(image_size=size, resize="keep_aspect", memory_size=10_240)
    return dict.fromkeys(LABEL_SHARES, in_context) | {
        "linear": LinearSegmentation(
            image_size=size, stride=2 * size // 3, steps=sizes.linear_steps, batch_size=8,
            warmup_steps=sizes.linear_steps // 10, photometric_style="mmseg", eval_interval=None,
        ),
        "overclustering": Overclustering(
            image_size=size, num_clusters=("classes", 50), num_seeds=3, num_restarts=2, num_iterations=50
        ),
        "knn": KnnClassification(
            resize_size=size, image_size=size, num_neighbors=(10, 20), max_images=sizes.knn_images
        ),
    }  # fmt: skip


def make_scorers(
    labels: Path, regions: Path, sizes: Sizes, *, more: dict[str, Path], device: torch.device
) -> dict[str, Callable[[Backbone], Score]]:
    """A function per score.

    Args:
        regions: folder for the images of k-NN, made of the labeled images if it is not there.
        more: data of the slower tasks that were asked for.
    """
    data = read_segmentation(labels)
    write_regions(data, regions)
    by_name = protocols(sizes)

    def in_context(backbone: Backbone, stride: int, protocol: InContextSegmentation) -> Score:
        return in_context_at_share(data, protocol, stride, patch_size=backbone.patch_size)(backbone, device)

    def linear(backbone: Backbone) -> Score:
        with tempfile.TemporaryDirectory() as folder:
            context = EvalContext(Path(folder), device)
            scores: SegmentationScores = evaluate_linear_segmentation(backbone, data, by_name["linear"], context)
        return from_overlaps(scores.overlaps.numpy())

    def by_task(backbone: Backbone, task: str, folder: Path, protocol: Any) -> Score:
        with tempfile.TemporaryDirectory() as out:
            result = run_task(task, backbone, folder, protocol, EvalContext(Path(out), device))
        return {name: value for name, value in result.metrics.items() if not name.startswith("IoU/")}

    scorers: dict[str, Callable[[Backbone], Score]] = {
        name: lambda backbone, stride=stride, name=name: in_context(backbone, stride, by_name[name])
        for name, stride in LABEL_SHARES.items()
    }
    scorers |= {
        "linear": linear,
        "overclustering": lambda backbone: by_task(backbone, "overclustering", labels, by_name["overclustering"]),
        "knn": lambda backbone: by_task(backbone, "knn-classification", regions, by_name["knn"]),
    }
    for name, folder in more.items():
        task = SLOW[name]
        # A copy, as some of them fine-tune it; without the cache, which a network in training has no use for.
        scorers[name] = lambda backbone, task=task, folder=folder: by_task(
            copy.deepcopy(unwrap_cache(backbone)), task, folder, TASKS[task].presets["quick"]
        )
    return scorers


def cached(backbone: Backbone, folder: Path) -> CachedBackbone:
    return CachedBackbone(backbone, folder, max_bytes=2e9)


def write_regions(data: SegmentationData, folder: Path) -> None:
    """Images of one class each: the box around the largest region of every class in every labeled image.

    Left out: small regions, and boxes nearly as large as their image, which show all of it.
    """
    if folder.exists():
        return
    unfinished = folder.with_name(f"unfinished-{folder.name}")
    for split, items in (("train", data.train), ("val", data.val)):
        for number, item in enumerate(items):
            image, mask = data.read_image(item), data.read_mask(item)
            for label in np.unique(mask[mask != IGNORED]):
                _, _, boxes, _ = cv2.connectedComponentsWithStats((mask == label).astype(np.uint8))
                left, top, width, height, area = boxes[1:][boxes[1:, cv2.CC_STAT_AREA].argmax()]
                shows_all = width > LARGEST_SIDES * mask.shape[1] and height > LARGEST_SIDES * mask.shape[0]
                if area < SMALLEST_REGION * mask.size or shows_all:
                    continue
                place = unfinished / split / data.class_names[label]
                place.mkdir(parents=True, exist_ok=True)
                Image.fromarray(image[top : top + height, left : left + width]).save(place / f"{number:05d}.png")
    unfinished.rename(folder)
