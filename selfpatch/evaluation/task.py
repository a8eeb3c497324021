"""Input and output of every evaluation task."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from selfpatch.backbones.backbone import Backbone

# Progress callback: (done, total).
ProgressFn = Callable[[int, int], None]


def no_progress(done: int, total: int) -> None:
    pass


class TrainedHead(NamedTuple):
    """What a task trained and scored: a head for `backbone`, or a module that has the backbone in it, fine-tuned."""

    task: str
    module: nn.Module
    backbone: Backbone
    protocol: Any
    class_names: list[str]


class EvalContext(NamedTuple):
    """Device, output folder and progress callback of one evaluation.

    Args:
        out: the folder of this evaluation. A task writes its pictures to out/pictures, and its other files (masks,
            checkpoints of a head) beside them; `run_task` writes result.json.
        model: as the user named it.
        keep_head: is given the trained head that the scores are of; None: nobody wants it.
    """

    out: Path
    device: torch.device = torch.device("cpu")
    report: ProgressFn = no_progress
    model: str = "unnamed"
    keep_head: Callable[[TrainedHead], None] | None = None

    @property
    def pictures(self) -> Path:
        return self.out / "pictures"


@dataclass(frozen=True)
class EvalOutput:
    """Scores of a task.

    Args:
        metrics: name -> number; fractions are in [0, 1]. The first one is the task's headline.
        dataset_info: dataset facts for result.json: split, numbers of images and classes; under "notes", a list of
            remarks on them. Results that differ in it are not compared.
        details: choices made by the model or its scores, for result.json: which vector, which learning rate was best.
        lower_is_better: metrics of which the lowest value is the best one.
    """

    metrics: dict[str, float]
    dataset_info: dict[str, Any]
    details: dict[str, Any] = field(default_factory=dict)
    lower_is_better: list[str] = field(default_factory=list)
