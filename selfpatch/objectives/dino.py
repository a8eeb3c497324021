"""DINO: every crop of the student predicts the teacher's view of the global crops, image by image."""

import torch
from jaxtyping import Float
from torch import Tensor

from selfpatch.config import DINOConfig
from selfpatch.objectives.distillation_branch import BranchObjective, DistillationBranch
from selfpatch.objectives.encoder import EncodedViews
from selfpatch.objectives.objective import Needs
from selfpatch.objectives.self_distillation import TargetsOf, distillation_signals


class DINO(BranchObjective):
    """Image-level objective: mean cross-entropy over all pairs of a teacher's global crop and another student's crop.

    Source: DINO (ICCV 2021), algorithm 1; as SelfPatch runs it, where `center_crops` is "all".
    """

    def __init__(self, dim: int, config: DINOConfig, *, steps_per_epoch: int):
        super().__init__()
        self.weight = config.weight
        self._centers_local = config.center_crops == "all" and config.distillation.centering == "mean"
        self.needs = Needs(student_local=True, teacher_local=self._centers_local, image_token=True)
        self.branch = DistillationBranch(dim, config.head, config.distillation, steps_per_epoch=steps_per_epoch)

    def forward(
        self, student: EncodedViews, teacher: EncodedViews, step: int
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        num_images = student.num_images

        # 1. Targets: the teacher's global crops.
        projected = self.branch.project_teacher(teacher.global_crops.image_token)  # [G*B, Z]
        targets = self.branch.targets(projected, step)  # [G*B, K]
        self._accumulate_center(projected, teacher)

        # 2. Predictions: all crops of the student.
        predicted = self.branch.predict(torch.cat([crops.image_token for crops in student.by_resolution]))  # [V*B, Z]

        # 3. Cross-entropy over all pairs (g, v) of different crops, g != v.
        num_pairs = len(targets) // num_images * (len(predicted) // num_images - 1) * num_images
        loss = self.branch.cross_entropy(predicted, targets_excluding_self(targets, num_images)) / num_pairs
        return loss, distillation_signals(targets, loss)

    def _accumulate_center(self, projected: Float[Tensor, "GB Z"], teacher: EncodedViews) -> None:
        if self._centers_local and teacher.local_crops is not None:
            projected = torch.cat([projected, self.branch.project_teacher(teacher.local_crops.image_token)])
        self.branch.accumulate_center(projected)


def targets_excluding_self(targets: Float[Tensor, "GB K"], num_images: int) -> TargetsOf:
    """For every row of the student's crops [V*B], the sum of the targets of the same image's other global crops.

    Cross-entropy is linear in the targets, so those of a view v are summed first:
    sum over g != v of <target_g, log p_v>  =  <sum over g of target_g - [v is global] target_v, log p_v>.
    Made chunk by chunk: for all views they would be as large as all logits.
    """
    target_sum = targets.unflatten(0, (-1, num_images)).sum(dim=0)  # [B, K]

    def targets_of(rows: slice) -> Float[Tensor, "_ K"]:
        image_index = torch.arange(*rows.indices(rows.stop), device=targets.device) % num_images
        others, self_target = target_sum[image_index], targets[rows]
        others[: len(self_target)] -= self_target  # the global crops come first: there may be fewer, or none
        return others

    return targets_of
