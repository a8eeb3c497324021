"""COCO's average precision of boxes and masks, by faster-coco-eval, and detections in COCO's format of results."""

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from faster_coco_eval import COCO, COCOeval_faster
from faster_coco_eval.core import mask as run_lengths
from jaxtyping import Float32
from torch import Tensor

from selfpatch.evaluation.datasets.coco_annotations import CocoImage
from selfpatch.evaluation.detection.detector import Detections, Size

# Our names -> those of faster-coco-eval.
NUMBERS = {
    "AP": "AP_all",
    "AP50": "AP_50",
    "AP75": "AP_75",
    "AP-small": "AP_small",
    "AP-medium": "AP_medium",
    "AP-large": "AP_large",
}
KINDS = {"box": "bbox", "mask": "segm"}

# An entry of COCO's results: image_id, category_id, bbox (left, top, width, height), score, segmentation (run lengths).
ResultEntry = dict[str, Any]


def result_entries(
    item: CocoImage, found: Detections, size: Size, category_ids: Sequence[int], *, threshold: float = 0.5
) -> list[ResultEntry]:
    """Detections on an image that was seen at `size`, in pixels of the image itself.

    Args:
        threshold: probability from which on a pixel belongs to a mask.
    """
    factors = torch.tensor([item.size[1] / size[1], item.size[0] / size[0]]).repeat(2)
    boxes = found.boxes.cpu() * factors
    rles = [
        run_lengths.encode(np.asfortranarray(pasted_mask(mask, box, item.size) >= threshold).astype(np.uint8))
        for mask, box in zip(found.masks.cpu(), boxes, strict=True)
    ]
    return [
        {
            "image_id": item.id,
            "category_id": category_ids[label],
            "bbox": [left, top, right - left, bottom - top],
            "score": score,
            "segmentation": {"size": list(rle["size"]), "counts": rle["counts"].decode("ascii")},
        }
        for label, (left, top, right, bottom), score, rle in zip(
            found.labels.tolist(), boxes.tolist(), found.scores.tolist(), rles, strict=True
        )
    ]


def pasted_mask(mask: Float32[Tensor, "r r"], box: Float32[Tensor, "4"], size: Size) -> Float32[np.ndarray, "H W"]:
    """Probabilities on a grid over a box (left, top, right, bottom) become those of pixels, bilinearly; 0 elsewhere.

    Source: mmdetection's and detectron2's way to paste masks, without torchvision's rounding of boxes to whole pixels.
    """
    pasted = np.zeros(size, np.float32)
    left, top, right, bottom = box.tolist()
    # A sample within half a cell outside of the grid is part of a cell inside and part 0.
    margin = 1 + int(max(right - left, bottom - top) / mask.shape[-1])
    first_column, first_row = max(int(left) - margin, 0), max(int(top) - margin, 0)
    last_column, last_row = min(int(right) + margin, size[1] - 1), min(int(bottom) + margin, size[0] - 1)
    if right <= left or bottom <= top or last_column < first_column or last_row < first_row:
        return pasted
    x, y = torch.arange(first_column, last_column + 1) + 0.5, torch.arange(first_row, last_row + 1) + 0.5
    # From -1 at one end of the box to 1 at the other.
    along, down = 2 * (x - left) / (right - left) - 1, 2 * (y - top) / (bottom - top) - 1
    grid = torch.stack(torch.meshgrid(down, along, indexing="ij")[::-1], dim=-1)
    sampled = F.grid_sample(mask[None, None], grid[None], align_corners=False)[0, 0].numpy()
    pasted[first_row : first_row + len(y), first_column : first_column + len(x)] = sampled
    return pasted


def truth_entries(images: Sequence[CocoImage], category_ids: Sequence[int]) -> list[dict[str, Any]]:
    """Annotations as in COCO's file, numbered from 1: to the program 0 means that nothing was matched."""
    entries = [
        {
            "image_id": image.id,
            "category_id": category_ids[instance.label],
            "bbox": list(instance.bbox),
            "area": instance.area,
            "iscrowd": int(instance.is_crowd),
            "segmentation": instance.segmentation,
        }
        for image in images
        for instance in image.instances
    ]
    return [{"id": number} | entry for number, entry in enumerate(entries, start=1)]


def coco_metrics(
    images: Sequence[CocoImage],
    results: Sequence[ResultEntry],
    category_ids: Sequence[int],
    class_names: Sequence[str],
) -> dict[str, float]:
    """box/AP, box/AP50, ..., mask/AP, ..., and each class as "box/AP/NAME" and "mask/AP/NAME", all in [0, 1].

    AP is the mean over IoUs of 0.50, 0.55, ..., 0.95 and over classes, at most 100 detections an image. COCO's program
    says -1 where there is nothing to find (no object of that size, no object of that class); here the name is left out.
    """
    dataset = {
        "images": [{"id": image.id, "height": image.size[0], "width": image.size[1]} for image in images],
        "annotations": truth_entries(images, category_ids),
        "categories": [{"id": id_, "name": name} for id_, name in zip(category_ids, class_names, strict=True)],
    }
    metrics = {}
    for kind, iou_type in KINDS.items():
        # The size of a detection is the area of its box or of its mask; it is taken from the box where there is one.
        left_out = "segmentation" if kind == "box" else "bbox"
        entries = [{key: value for key, value in entry.items() if key != left_out} for entry in results]
        numbers = average_precisions(dataset, entries, iou_type)
        of_classes = numbers.pop("classes")
        metrics |= {f"{kind}/{name}": value for name, value in numbers.items()}
        metrics |= {f"{kind}/AP/{class_names[category_ids.index(id_)]}": value for id_, value in of_classes.items()}
    return {name: float(value) for name, value in metrics.items() if value >= 0}


def average_precisions(dataset: dict[str, Any], entries: list[ResultEntry], iou_type: str) -> dict[str, Any]:
    """The six numbers, and under "classes" the AP of each category id; -1 where there is nothing to find."""
    silent = logging.getLogger(__name__).debug
    truth = COCO({key: [dict(entry) for entry in value] for key, value in dataset.items()}, print_function=silent)
    evaluation = COCOeval_faster(truth, truth.loadRes(entries), iou_type, print_function=silent)
    evaluation.run()
    numbers = {name: evaluation.stats_as_dict[theirs] for name, theirs in NUMBERS.items()}
    # Places: IoU, recall, class, size (the first is all sizes), most detections (the last is 100).
    precision = np.asarray(evaluation.eval["precision"])[:, :, :, 0, -1]
    of_class = {
        category_id: precision[:, :, place].mean() if (precision[:, :, place] > -1).any() else -1.0
        for place, category_id in enumerate(evaluation.params.catIds)
    }
    return numbers | {"classes": of_class}
