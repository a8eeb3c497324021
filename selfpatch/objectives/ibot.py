"""iBOT: each masked patch of the student predicts the teacher's patch at the same place."""

from selfpatch.config.objectives.ibot import IBOTConfig
from selfpatch.objectives.distillation_branch import DistillationBranch
from selfpatch.objectives.patch import PatchObjective


class IBOT(PatchObjective):
    """The patch-level objective on the masked patches of global crops, with the teacher's same patches as targets.

    iBOT's loss is the sum of this and `DINO`, whose head it shares in the authors' runs. With `visible_weight` 1 the
    visible patches count as much, as in iBOT++.

    Source: iBOT (ICLR 2022), sec. 3; bytedance/ibot@da316d8 iBOTLoss. iBOT++: TIPSv2 (arXiv 2604.12012). Differs: heads
    that are not shared have nothing in common, as in DINOv2; iBOT's share all but the prototypes.
    """

    def __init__(self, dim: int, config: IBOTConfig, *, steps_per_epoch: int, shared: DistillationBranch | None = None):
        super().__init__(dim, config, steps_per_epoch=steps_per_epoch, shared=shared)
