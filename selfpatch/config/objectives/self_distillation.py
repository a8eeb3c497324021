"""Settings of self-distillation: from logits to targets and predictions."""

from dataclasses import dataclass
from typing import Annotated, Literal

from selfpatch.config.ranges import BelowOne, Config, NonNegative, Positive


@dataclass(frozen=True)
class SelfDistillationConfig(Config, group="distillation"):
    """Temperatures of softmaxes (lower is sharper), and centering of the teacher's logits."""

    # temperature of the student's softmax
    student_temperature: Annotated[float, Positive] = 0.1
    # temperature of the teacher's softmax after its warm-up
    teacher_temperature: Annotated[float, Positive] = 0.04
    # temperature of the teacher's softmax at the start of its warm-up
    warmup_teacher_temperature: Annotated[float, Positive] = 0.04
    # epochs of warm-up of the teacher's temperature
    warmup_epochs: Annotated[int, NonNegative] = 0
    # prevention of collapse: "mean" subtracts a moving mean of the teacher's logits (as DINO); "sinkhorn" spreads every
    # batch evenly over the prototypes (as SwAV and DINOv2), which small batches and short runs need
    centering: Literal["mean", "sinkhorn"] = "mean"
    # what each of Sinkhorn's three iterations balances first: "prototypes", as SwAV and DINOv2; "rows", the targets
    # of the batch, which sharp temperatures need (docs/tried.md)
    sinkhorn_first: Literal["rows", "prototypes"] = "rows"
    # momentum of the moving mean of the teacher's logits
    center_momentum: Annotated[float, BelowOne] = 0.9
