"""What every evaluation task is given, and what it gives back."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch

# done, of how many
ProgressFn = Callable[[int, int], None]


def no_progress(done: int, total: int) -> None:
    pass


class EvalContext(NamedTuple):
    """Where a task runs and what it may write to.

    Args:
        out: the folder of this evaluation. A task writes its pictures to out/pictures, and whatever else its users
            expect (masks, checkpoints of a head) beside them; result.json is written for it.
        model: as the user named it.
    """

    out: Path
    device: torch.device = torch.device("cpu")
    report: ProgressFn = no_progress
    model: str = "unnamed"

    @property
    def pictures(self) -> Path:
        return self.out / "pictures"


@dataclass(frozen=True)
class EvalOutput:
    """What a task came to.

    Args:
        metrics: name -> number; shares are in [0, 1]. The first one is the task's headline.
        dataset_info: what the protocol met in the data, for result.json: split, numbers of images and classes; under
            "notes", a list of what should be known of scores on them. Results that differ in it are not compared.
        details: what the model or its scores decided, for result.json: which vector, which learning rate was best.
    """

    metrics: dict[str, float]
    dataset_info: dict[str, Any]
    details: dict[str, Any] = field(default_factory=dict)
