"""DINO: every crop of the student predicts the teacher's view of the global crops, image by image."""

import copy
from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from selfpatch.config import DINOConfig
from selfpatch.objectives.objective import EncodedViews, Objective, without_gradient
from selfpatch.objectives.projection_heads import ProjectionHead
from selfpatch.objectives.self_distillation import SelfDistillation, chunked_cross_entropy, signals


class DINO(Objective):
    """Image-level term: mean cross-entropy over all pairs of a teacher's global crop and another crop of the student.

    Source: DINO (ICCV 2021), algorithm 1; as SelfPatch runs it, where `center_crops` is "all".
    """

    def __init__(self, dim: int, config: DINOConfig, *, steps_per_epoch: int):
        super().__init__()
        self.weight = config.weight
        self.teacher_crops = config.center_crops
        self.head = ProjectionHead(dim, config.head)
        self.teacher_head = without_gradient(copy.deepcopy(self.head))
        self.distillation = SelfDistillation(
            self.head.num_prototypes, config.distillation, steps_per_epoch=steps_per_epoch
        )
        self._frozen_steps = config.head.freeze_prototypes_epochs * steps_per_epoch

    def forward(
        self, student: EncodedViews, teacher: EncodedViews, step: int
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        num_images = student.num_images

        # 1. Targets: the teacher's global crops.
        with torch.no_grad():
            bottleneck = self.teacher_head.bottleneck(teacher.encoder.image_token(teacher.global_crops))
            targets = self.distillation.targets(self.teacher_head.prototypes(bottleneck), step)
            targets = targets.unflatten(0, (-1, num_images))  # [G, B, K]
            self._observe(bottleneck, teacher)

        # 2. Predictions: all crops of the student.
        image_tokens = torch.cat([student.encoder.image_token(tokens) for tokens in student.sizes])
        predicted = self.head.bottleneck(image_tokens)  # [V*B, Z]

        # 3. Cross-entropy over all pairs (g, v), g != v. It is linear in the targets: per view v they are summed first,
        #    sum over g != v of <target_g, log p_v>  =  <sum over g of target_g - [v is global] target_v, log p_v>.
        #    They are made chunk by chunk: for all views they would be as large as all logits.
        num_global, num_views = len(targets), len(predicted) // num_images
        total, targets = targets.sum(dim=0), targets.flatten(0, 1)  # [B, K], [G*B, K]
        image = torch.arange(len(predicted), device=total.device) % num_images

        def others(rows: slice) -> Float[Tensor, "_ K"]:
            summed, own = (
                total[image[rows]],
                targets[rows],
            )  # the global views come first: `own` may be shorter, or empty
            summed[: len(own)] -= own
            return summed

        loss = chunked_cross_entropy(
            predicted,
            self.head.prototypes.weight,
            others,
            temperature=self.distillation.student_temperature,
        ) / (num_global * (num_views - 1) * num_images)
        return loss, signals(targets, loss)

    def _observe(self, global_bottleneck: Float[Tensor, "VB Z"], teacher: EncodedViews) -> None:
        if self.teacher_crops == "all" and teacher.local_crops is not None:
            local_bottleneck = self.teacher_head.bottleneck(teacher.encoder.image_token(teacher.local_crops))
            global_bottleneck = torch.cat([global_bottleneck, local_bottleneck])
        # Prototypes are linear: the mean logit is the logit of the mean, no logits of local crops needed.
        self.distillation.observe(self.teacher_head.prototypes(global_bottleneck.mean(dim=0)))

    def ema_pairs(self) -> list[tuple[nn.Module, nn.Module]]:
        return [(self.head, self.teacher_head)]

    def frozen_parameters(self, step: int) -> Iterable[nn.Parameter]:
        return self.head.prototypes.parameters() if step < self._frozen_steps else []

    def commit(self) -> None:
        self.distillation.commit()

    def discard(self) -> None:
        self.distillation.discard()
