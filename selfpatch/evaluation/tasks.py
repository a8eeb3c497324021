"""Evaluation tasks by name, and `run_task`: from a model and a folder of data to result.json and pictures."""

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from selfpatch.backbones.backbone import Backbone
from selfpatch.config.io import to_dict
from selfpatch.errors import UserError
from selfpatch.evaluation.classification import knn_classification, linear_classification
from selfpatch.evaluation.detection import mask_rcnn
from selfpatch.evaluation.discovery import object_discovery
from selfpatch.evaluation.fingerprint import description
from selfpatch.evaluation.protocols import protocol_name
from selfpatch.evaluation.result import Result
from selfpatch.evaluation.segmentation import (
    in_context_segmentation,
    linear_segmentation,
    overclustering,
    semantic_segmentation,
)
from selfpatch.evaluation.task import EvalContext, EvalOutput
from selfpatch.evaluation.video import video_segmentation
from selfpatch.output.versions import versions
from selfpatch.training.precision import resolve_precision

# (backbone, folder of data, protocol, context) -> output
TASK_RUNNERS: dict[str, Callable[[Backbone, Path, Any, EvalContext], EvalOutput]] = {
    "in-context-segmentation": in_context_segmentation.run,
    "knn-classification": knn_classification.run,
    "linear-classification": linear_classification.run,
    "linear-segmentation": linear_segmentation.run,
    "mask-rcnn": mask_rcnn.run,
    "object-discovery": object_discovery.run,
    "overclustering": overclustering.run,
    "semantic-fpn": semantic_segmentation.run_semantic_fpn,
    "upernet": semantic_segmentation.run_upernet,
    "video-segmentation": video_segmentation.run,
}

# Their data sets, and the augmentation of their training, are 8-bit RGB.
RGB_TASKS = ("mask-rcnn", "video-segmentation")


def run_task(task: str, backbone: Backbone, data: Path, protocol: Any, context: EvalContext) -> Result:
    """Run a task and write OUT/result.json and OUT/pictures.

    Args:
        protocol: the task's settings.

    Raises:
        UserError: the data are not complete and consistent, or do not fit the model or the protocol.
    """
    if task in RGB_TASKS and not backbone.pixels.is_8_bit_rgb:
        raise UserError(f"{task} reads 8-bit RGB, and this model is made for {backbone.pixels}; choose another task")
    start = time.monotonic()
    # A setting that is left out of comparisons changes no number: it does not make another protocol.
    changes_nothing = {field.name for field in dataclasses.fields(protocol) if not field.compare}
    settings = to_dict(protocol)
    non_result_settings = {name: settings.pop(name) for name in changes_nothing}
    if "precision" in settings:
        settings["precision"] = resolve_precision(settings["precision"], context.device)
    output = TASK_RUNNERS[task](backbone, data, protocol, context)
    # Notes are not part of the protocol's identity.
    dataset_info = {name: value for name, value in output.dataset_info.items() if name != "notes"}
    assert not dataset_info.keys() & settings.keys(), "a fact of the data would hide a setting of the same name"
    result = Result(
        task=task,
        protocol={"name": protocol_name(task, protocol)} | settings | dataset_info,
        metrics=output.metrics,
        model=context.model,
        data=str(data),
        seconds=time.monotonic() - start,
        versions=versions(),
        details={"model": description(backbone), "device": str(context.device)}
        | non_result_settings
        | output.details
        | {"differs": list(getattr(protocol, "differs", ()))},
        notes=[*backbone.notes, *output.dataset_info.get("notes", ())],
        lower_is_better=[name for name in output.metrics if name in output.lower_is_better],
    )
    result.write(context.out / "result.json")
    return result
