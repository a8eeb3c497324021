"""Settings of DINO, the image-level objective."""

from dataclasses import dataclass
from typing import Annotated, Literal

from selfpatch.config.objectives.objective import ObjectiveConfig
from selfpatch.config.objectives.projection_head import HeadConfig
from selfpatch.config.objectives.self_distillation import SelfDistillationConfig
from selfpatch.config.ranges import NonNegative


@dataclass(frozen=True)
class DINOConfig(ObjectiveConfig, group="objectives.dino"):
    """Image-level objective: every crop predicts the teacher's output for the global crops."""

    # weight of the DINO objective in the loss
    weight: Annotated[float, NonNegative] = 1.0

    # projection head: from image tokens to prototypes
    head: HeadConfig = HeadConfig()

    # self-distillation: from logits to targets and predictions
    distillation: SelfDistillationConfig = SelfDistillationConfig()

    # teacher crops that update the center: the global ones (as DINO's code) or all (as SelfPatch's code)
    center_crops: Literal["global", "all"] = "global"
