"""Settings of SelfPatch, the patch-level objective."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from selfpatch.config.objectives.objective import ObjectiveConfig
from selfpatch.config.objectives.projection_head import HeadConfig
from selfpatch.config.objectives.self_distillation import SelfDistillationConfig
from selfpatch.config.ranges import NonNegative, Odd, Positive


@dataclass(frozen=True)
class SelfPatchConfig(ObjectiveConfig, group="objectives.selfpatch"):
    """Patch-level objective: each patch predicts the aggregate of its most similar neighbors."""

    needs_aggregator: ClassVar[bool] = True

    # weight of the SelfPatch objective in the loss
    weight: Annotated[float, NonNegative] = 0.1

    # projection head: from patch tokens to prototypes
    head: HeadConfig = HeadConfig(num_prototypes=4096)

    # self-distillation: from logits to targets and predictions
    distillation: SelfDistillationConfig = SelfDistillationConfig()

    # side of the square neighborhood in patches, odd; 3 means 8 neighbors
    window_size: Annotated[int, Odd] = 3
    # k: number of most similar neighbors that are aggregated
    num_positives: Annotated[int, Positive] = 4
    # neighbors beyond the image's border: from the opposite side (as SelfPatch's code), or none (as the paper's text)
    padding_mode: Literal["circular", "none"] = "circular"
    # crops on which the loss is computed; with "global" the teacher sees no local crop
    crops: Literal["all", "global"] = "all"

    def __post_init__(self):
        super().__post_init__()
        inside = (self.window_size // 2 + 1) ** 2 - 1 if self.padding_mode == "none" else self.window_size**2 - 1
        self.require(
            self.num_positives <= inside,
            "num_positives",
            f"with window-size {self.window_size} and padding-mode {self.padding_mode!r} every patch has {inside} "
            f"neighbors: choose 1 to {inside}, or a larger window",
        )
