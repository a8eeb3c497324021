"""Every number of every evaluation task, named and with its source. Imports no torch, so that `--help` is quick.

A score means something only together with its protocol: the whole of it goes into result.json. One file per task: its
settings, and the presets that have a name.
"""

from typing import Any, NamedTuple

from selfpatch.evaluation.protocols import (
    in_context_segmentation,
    knn_classification,
    linear_classification,
    linear_segmentation,
    mask_rcnn,
    object_discovery,
    overclustering,
    semantic_fpn,
    upernet,
    video_segmentation,
)

LABELED_IMAGES = "labelled images: ADE20K, Pascal VOC 2012, Cityscapes, or images/ and masks/"
IMAGES_OF_CLASSES = "one folder of images per class, below train/ and val/ or all together"
FROZEN_DATA = "a data set of any task of frozen features, or a folder of such data sets"
IMAGES_WITH_BOXES = "images with boxes: Pascal VOC, COCO, or images/ and annotations/*.xml"


class Task(NamedTuple):
    """The torch-free part of a task."""

    presets: dict[str, Any]  # settings by name; the first is the default
    data: str  # layout of its folder of data, in a few words


TASKS = {
    "in-context-segmentation": Task(in_context_segmentation.PRESETS, LABELED_IMAGES),
    "knn-classification": Task(knn_classification.PRESETS, IMAGES_OF_CLASSES),
    "linear-classification": Task(linear_classification.PRESETS, IMAGES_OF_CLASSES),
    "linear-segmentation": Task(linear_segmentation.PRESETS, LABELED_IMAGES),
    "mask-rcnn": Task(mask_rcnn.PRESETS, "COCO's layout: train2017/, val2017/ and annotations/"),
    "object-discovery": Task(object_discovery.PRESETS, IMAGES_WITH_BOXES),
    "overclustering": Task(overclustering.PRESETS, LABELED_IMAGES),
    "semantic-fpn": Task(semantic_fpn.PRESETS, LABELED_IMAGES),
    "upernet": Task(upernet.PRESETS, LABELED_IMAGES),
    "video-segmentation": Task(video_segmentation.PRESETS, "videos in DAVIS-2017's layout"),
}


def protocol_name(task: str, protocol: Any) -> str:
    """The name of the preset that has exactly these settings; a number under another's name would mislead."""
    return next((name for name, preset in TASKS[task].presets.items() if preset == protocol), "custom")
