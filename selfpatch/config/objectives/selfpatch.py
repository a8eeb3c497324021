"""Settings of SelfPatch: the patch-level objective on neighbors."""

from dataclasses import dataclass
from typing import Annotated, Literal

from selfpatch.config.objectives.patch import PatchConfig
from selfpatch.config.objectives.projection_head import HeadConfig
from selfpatch.config.ranges import NonNegative


@dataclass(frozen=True)
class SelfPatchConfig(PatchConfig, group="objectives.selfpatch"):
    """Patch-level objective: each patch predicts the aggregate of its most similar neighbors."""

    # weight of the SelfPatch objective in the loss
    weight: Annotated[float, NonNegative] = 0.1

    # projection head: from patch tokens to prototypes; None: that of objectives.dino, which is shared
    head: HeadConfig | None = HeadConfig(num_prototypes=4096)

    # target of a patch: the teacher's patch at the same place, or the aggregate of its most similar neighbors
    target: Literal["self", "neighbors"] = "neighbors"
