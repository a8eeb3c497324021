"""SelfPatch: each patch of the student predicts the aggregate of its most similar neighbors."""

from selfpatch.config import SelfPatchConfig
from selfpatch.objectives.distillation_branch import DistillationBranch
from selfpatch.objectives.patch import PatchObjective
from selfpatch.objectives.positives import find_positives, match_positives, neighborhood

__all__ = ["SelfPatch", "find_positives", "match_positives", "neighborhood"]


class SelfPatch(PatchObjective):
    """The patch-level objective on all patches, none masked, with neighbors aggregated by class attention as targets.

    Source: SelfPatch (CVPR 2022), sec. 3.2; alinlab/SelfPatch@81aef14. Differs: any grid; settings `padding_mode` and
    `crops` (its code has "circular" and "all").
    """

    def __init__(
        self, dim: int, config: SelfPatchConfig, *, steps_per_epoch: int, shared: DistillationBranch | None = None
    ):
        super().__init__(dim, config, steps_per_epoch=steps_per_epoch, shared=shared)
