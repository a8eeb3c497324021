"""Settings of iBOT: the patch-level objective on masked patches."""

from dataclasses import dataclass
from typing import Annotated, Literal

from selfpatch.config.masks import MaskConfig
from selfpatch.config.objectives.patch import PatchConfig
from selfpatch.config.objectives.projection_head import HeadConfig
from selfpatch.config.objectives.self_distillation import SelfDistillationConfig
from selfpatch.config.ranges import NonNegative


@dataclass(frozen=True)
class IBOTConfig(PatchConfig, group="objectives.ibot"):
    """Patch-level objective: each masked patch predicts the teacher's patch at the same place."""

    # projection head: from patch tokens to prototypes; None: that of objectives.dino, which is shared
    head: HeadConfig | None = None

    # self-distillation: from logits to targets and predictions
    distillation: SelfDistillationConfig = SelfDistillationConfig(teacher_temperature=0.07, warmup_epochs=30)

    # crops on which the loss is computed; with "global" the teacher sees no local crop
    crops: Literal["all", "global"] = "global"

    # masks of the student's global crops; None: this objective asks for none
    masks: MaskConfig | None = MaskConfig()
    # weight of a visible patch in the mean over a crop's patches; 0: the loss is on masked patches alone
    visible_weight: Annotated[float, NonNegative] = 0.0
