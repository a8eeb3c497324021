"""Self-distillation over prototypes: student's and teacher's projection heads, and the targets between them."""

import copy
from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from selfpatch.config import HeadConfig, SelfDistillationConfig
from selfpatch.objectives.encoder import Encoder
from selfpatch.objectives.objective import Objective
from selfpatch.objectives.projection_heads import ProjectionHead
from selfpatch.objectives.self_distillation import (
    SelfDistillation,
    TargetsOf,
    chunked_cross_entropy,
    distillation_signals,
)


class DistillationBranch(nn.Module):
    """A projection head, its teacher, and the center or Sinkhorn that turns the teacher's logits into targets.

    Owned by an objective. With `shared` (iBOT's shared head) both heads are that branch's, center and temperatures are
    not. Its heads are registered there alone: once in `state_dict`, once in a checkpoint.

    Source: DINO, algorithm 1.
    """

    head: ProjectionHead
    teacher_head: ProjectionHead

    def __init__(
        self,
        dim: int,
        head: HeadConfig | None,
        distillation: SelfDistillationConfig,
        *,
        steps_per_epoch: int,
        shared: "DistillationBranch | None" = None,
    ):
        super().__init__()
        if head is not None:
            self.head = ProjectionHead(dim, head)
            self.teacher_head = copy.deepcopy(self.head).requires_grad_(False)
            if head.freeze_prototypes_epochs == "always":
                self.head.prototypes.requires_grad_(False)
                self._frozen_steps = 0
            else:
                self._frozen_steps = head.freeze_prototypes_epochs * steps_per_epoch
        else:
            assert shared is not None, "settings without a head are refused without the objective that has one"
            # Not as attributes of a module, which would register them a second time.
            object.__setattr__(self, "head", shared.head)
            object.__setattr__(self, "teacher_head", shared.teacher_head)
            self._frozen_steps = shared._frozen_steps
        self.distillation = SelfDistillation(self.head.num_prototypes, distillation, steps_per_epoch=steps_per_epoch)

    def predict(self, tokens: Float[Tensor, "*rows D"]) -> Float[Tensor, "*rows Z"]:
        """Unit vectors of the student's tokens, one matrix product before logits."""
        return self.head.bottleneck(tokens)

    @torch.no_grad()
    def project_teacher(self, tokens: Float[Tensor, "*rows D"]) -> Float[Tensor, "*rows Z"]:
        """Unit vectors of the teacher's tokens, one matrix product before logits."""
        return self.teacher_head.bottleneck(tokens)

    @torch.no_grad()
    def targets(self, projected: Float[Tensor, "rows Z"], step: int) -> Float[Tensor, "rows K"]:
        """All targets at once, from `project_teacher`'s vectors."""
        return self.distillation.targets(self.teacher_head.prototypes(projected), step)

    @torch.no_grad()
    def targets_of(self, projected: Float[Tensor, "rows Z"], step: int) -> TargetsOf:
        """The same targets, made when a chunk of rows is asked for: together they may not fit into memory."""
        return self.distillation.targets_of(projected, self.teacher_head.prototypes.weight, step)

    @torch.no_grad()
    def accumulate_center(self, projected: Float[Tensor, "rows Z"]) -> None:
        """Remember the mean logit of these rows for the center: prototypes are linear, so it is that of the mean."""
        if not self.distillation.has_center:
            return
        self.distillation.accumulate_center(self.teacher_head.prototypes(projected.mean(dim=0)))

    def cross_entropy(self, predicted: Float[Tensor, "rows Z"], targets_of: TargetsOf) -> Float[Tensor, ""]:
        """Sum over rows of the cross-entropy between targets and the student's softmax."""
        return chunked_cross_entropy(
            predicted, self.head.prototypes.weight, targets_of, temperature=self.distillation.student_temperature
        )

    @torch.no_grad()
    def signals(
        self, predicted: Float[Tensor, "rows Z"], targets: Float[Tensor, "rows K"]
    ) -> dict[str, Float[Tensor, ""]]:
        """Health of the targets, and how far the student's predictions of the same rows are from them."""
        logits = self.head.prototypes(predicted).float() / self.distillation.student_temperature
        cross_entropy = -(targets * logits.log_softmax(dim=-1)).sum() / max(len(targets), 1)  # a rank may have no rows
        return distillation_signals(targets, cross_entropy)

    def ema_pairs(self) -> list[tuple[nn.Module, nn.Module]]:
        return [(self.head, self.teacher_head)]

    def frozen_parameters(self, step: int) -> Iterable[nn.Parameter]:
        """Prototypes of the first epochs. As in DINO's code their gradients are made, clipped, and then dropped."""
        return self.head.prototypes.parameters() if step < self._frozen_steps else []

    def commit(self) -> None:
        self.distillation.commit()

    def discard(self) -> None:
        self.distillation.discard()


class BranchObjective(Objective):
    """An objective with a branch: its EMA pairs, frozen parameters and changes of state are those of the branch."""

    branch: DistillationBranch

    def ema_pairs(self) -> list[tuple[nn.Module, nn.Module]]:
        return self.branch.ema_pairs()

    def frozen_parameters(self, encoder: Encoder, step: int) -> Iterable[nn.Parameter]:
        return self.branch.frozen_parameters(step)

    def commit(self) -> None:
        self.branch.commit()

    def discard(self) -> None:
        self.branch.discard()
