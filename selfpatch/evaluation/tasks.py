"""Every evaluation task by its name, and how one is run from a folder of data to result.json and pictures."""

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from selfpatch.evaluation import (
    all_frozen,
    in_context_segmentation,
    knn_classification,
    linear_classification,
    linear_segmentation,
    mask_rcnn,
    object_discovery,
    overclustering,
    semantic_segmentation,
    video_segmentation,
)
from selfpatch.evaluation.fingerprint import description
from selfpatch.evaluation.protocols import protocol_name
from selfpatch.evaluation.result import Result
from selfpatch.evaluation.task import Context, Outcome
from selfpatch.settings_file import to_dict
from selfpatch.training.loop import resolve_precision
from selfpatch.versions import versions

# (backbone, folder of data, protocol, context) -> outcome
RUN: dict[str, Callable[[Any, Path, Any, Context], Outcome]] = {
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
    "all-frozen": lambda *arguments: all_frozen.run(*arguments, run_task=run_task),
}


def run_task(task: str, backbone: Any, data: Path, protocol: Any, context: Context) -> Result:
    """Run a task and write OUT/result.json and OUT/pictures.

    Args:
        protocol: the task's settings.

    Raises:
        ValueError: the data are not complete and consistent, or do not fit the model or the protocol.
    """
    start = time.monotonic()
    # A setting that is left out of comparisons changes no number: it does not make another protocol.
    changes_nothing = {field.name for field in dataclasses.fields(protocol) if not field.compare}
    settings = to_dict(protocol)
    apart = {name: settings.pop(name) for name in changes_nothing}
    if "precision" in settings:
        settings["precision"] = resolve_precision(settings["precision"], context.device)
    outcome = RUN[task](backbone, data, protocol, context)
    # Not with the protocol: what is said of the data does not make it another one.
    met = {name: value for name, value in outcome.met.items() if name != "notes"}
    assert not met.keys() & settings.keys(), "a fact of the data would hide a setting of the same name"
    result = Result(
        task=task,
        protocol={"name": protocol_name(task, protocol)} | settings | met,
        metrics=outcome.metrics,
        model=context.model,
        data=str(data),
        seconds=time.monotonic() - start,
        versions=versions(),
        details={"model": description(backbone), "device": str(context.device)} | apart | outcome.details,
        notes=[*getattr(backbone, "notes", ()), *outcome.met.get("notes", ())],
    )
    result.write(context.out / "result.json")
    return result
