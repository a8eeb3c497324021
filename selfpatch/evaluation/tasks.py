"""Every evaluation task by its name, and how one is run from a folder of data to result.json and pictures."""

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from selfpatch.evaluation.datasets.segmentation_folder import SegmentationFolder
from selfpatch.evaluation.features import Backbone, Report
from selfpatch.evaluation.in_context_segmentation import InContextEvaluator
from selfpatch.evaluation.linear_segmentation import evaluate_linear_segmentation
from selfpatch.evaluation.prediction_pictures import write_prediction_sheets
from selfpatch.evaluation.protocols import PROTOCOLS, InContextSegmentation, LinearSegmentation
from selfpatch.evaluation.result import Result
from selfpatch.evaluation.segmentation_scores import SegmentationScores
from selfpatch.versions import versions


class Task(NamedTuple):
    protocol: type
    run: Callable[..., Result]


def run_in_context_segmentation(
    backbone: Backbone,
    data_root: Path,
    protocol: InContextSegmentation,
    *,
    model: str,
    out_dir: Path,
    device: torch.device | str = "cpu",
    report: Report | None = None,
) -> Result:
    start = time.monotonic()
    data = SegmentationFolder(data_root, max_images=protocol.max_images)
    evaluator = InContextEvaluator(data, protocol, patch_size=backbone.patch_size)
    scores = evaluator(backbone, device=device, report=report)
    return write_segmentation(
        scores, data, task="in-context-segmentation", protocol=protocol, model=model, out_dir=out_dir, start=start
    )


def run_linear_segmentation(
    backbone: Backbone,
    data_root: Path,
    protocol: LinearSegmentation,
    *,
    model: str,
    out_dir: Path,
    device: torch.device | str = "cpu",
    report: Report | None = None,
) -> Result:
    start = time.monotonic()
    data = SegmentationFolder(data_root, max_images=protocol.max_images)
    scores = evaluate_linear_segmentation(backbone, data, protocol, device=device, report=report)
    return write_segmentation(
        scores, data, task="linear-segmentation", protocol=protocol, model=model, out_dir=out_dir, start=start
    )


TASKS = {
    "in-context-segmentation": Task(InContextSegmentation, run_in_context_segmentation),
    "linear-segmentation": Task(LinearSegmentation, run_linear_segmentation),
}


def write_segmentation(
    scores: SegmentationScores,
    data: SegmentationFolder,
    *,
    task: str,
    protocol: InContextSegmentation | LinearSegmentation,
    model: str,
    out_dir: Path,
    start: float,
) -> Result:
    """OUT/result.json and OUT/pictures/predictions_1.png, ...; `start` is the monotonic time when the task began."""
    met = {
        "split": data.layout,
        "num_train_images": len(data.train),
        "num_val_images": len(data.val),
        "num_classes": data.num_classes,
    }
    result = Result(
        task=task,
        protocol={"name": protocol_name(task, protocol)} | dataclasses.asdict(protocol) | met,
        metrics=scores.metrics,
        model=model,
        data=str(data.root),
        seconds=time.monotonic() - start,
        versions=versions(),
    )
    write_prediction_sheets(scores.predictions, data, out_dir / "pictures")
    result.write(out_dir / "result.json")
    return result


def protocol_name(task: str, protocol: Any) -> str:
    """The name of the preset that has exactly these settings; a number under another's name would mislead."""
    return next((name for name, preset in PROTOCOLS[task].items() if preset == protocol), "custom")
