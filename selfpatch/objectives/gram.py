"""Gram anchoring: patches stay as similar to each other as they were to an earlier teacher."""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from selfpatch.config.objectives.gram import GramConfig
from selfpatch.objectives.encoder import EncodedViews, Encoder
from selfpatch.objectives.objective import Objective

# The step of a copy that has not been made.
NEVER = -1


class Gram(Objective):
    """Mean squared difference between the Gram matrices of the student's patches and the Gram teacher's.

    A Gram matrix holds the cosine similarity of every pair of patches of one global crop: patches may move as long as
    their similarities stay. Masked patches of the student count like all others. The Gram teacher is a frozen copy of
    the teacher's encoder, made after `teacher_epoch` and anew every `refresh_steps` from `start_epoch` on. Until then
    there is none: it costs no time before the start, and neither memory nor room in a checkpoint before the copy.

    Source: DINOv3 (arXiv 2508.10104), sec. 4: on global crops, weight 2, a Gram teacher from early in training,
    refreshed every 10,000 steps. Differs: a mean over pairs of patches where the equation has a sum; the Gram teacher
    sees the student's resolution, and not crops cut at twice of it.
    """

    gram_teacher: Encoder | None

    def __init__(self, dim: int, config: GramConfig, *, steps_per_epoch: int):
        super().__init__()
        self.weight = config.weight
        self._copy_step = round(config.teacher_epoch * steps_per_epoch)
        self._start_step = round(config.start_epoch * steps_per_epoch)
        self._refresh_steps = config.refresh_steps
        self.register_module("gram_teacher", None)
        self._copied_step = NEVER  # the teacher was copied as that step found it
        self._due_step = NEVER  # the same for the copy that `commit` will make
        self._teacher: tuple[Encoder, ...] = ()  # in a tuple: it belongs to another module

    def attach_teacher(self, teacher: Encoder) -> None:
        self._teacher = (teacher,)

    def weight_at(self, step: int) -> float:
        return self.weight if step >= self._start_step else 0.0

    def forward(
        self, student: EncodedViews, teacher: EncodedViews, step: int
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        is_due = self._copied_step < self._wanted_step(step)
        if is_due:
            self._due_step = step
        patch_tokens = student.norm(student.global_crops.tokens.patch_tokens)
        if step < self._start_step:
            return patch_tokens[:0].sum(), {}
        # Where a copy is due, the teacher of this step is the Gram teacher: its tokens are there.
        anchors = teacher.norm(teacher.global_crops.tokens.patch_tokens) if is_due else self._encode(teacher)
        loss = F.mse_loss(gram_matrix(patch_tokens), gram_matrix(anchors))
        age = 0 if is_due else step - self._copied_step
        return loss, {"teacher_age_steps": torch.tensor(float(age), device=loss.device)}

    def _wanted_step(self, step: int) -> int:
        """The step whose teacher should be the Gram teacher in `step`; NEVER: there is none yet."""
        if step < self._copy_step:
            return NEVER
        num_refreshes = (step - self._start_step) // self._refresh_steps if self._refresh_steps else 0
        return self._start_step + num_refreshes * (self._refresh_steps or 0) if num_refreshes > 0 else self._copy_step

    @torch.no_grad()
    def _encode(self, teacher: EncodedViews) -> Float[Tensor, "VB N D"]:
        assert self.gram_teacher is not None
        return self.gram_teacher.norm(self.gram_teacher.backbone(teacher.global_images).patch_tokens)

    def commit(self) -> None:
        if self._due_step != NEVER:
            self._copy_teacher()
            self._copied_step = self._due_step
        self.discard()

    def discard(self) -> None:
        self._due_step = NEVER

    def _copy_teacher(self) -> None:
        (teacher,) = self._teacher
        self.gram_teacher = teacher.frozen_copy()

    # Checkpoints: the step of the copy beside its tensors, and a Gram teacher to load them into.

    def get_extra_state(self) -> Tensor:
        return torch.tensor(self._copied_step)

    def set_extra_state(self, state: Tensor) -> None:
        self._copied_step = int(state)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *arguments: Any) -> None:
        if any(name.startswith(f"{prefix}gram_teacher.") for name in state_dict):
            self._copy_teacher()
        else:
            self.gram_teacher = None
        super()._load_from_state_dict(state_dict, prefix, *arguments)


def gram_matrix(patch_tokens: Float[Tensor, "B N D"]) -> Float[Tensor, "B N N"]:
    """Cosine similarity of all pairs of patches of an image, in float32."""
    with torch.autocast(patch_tokens.device.type, enabled=False):
        unit = F.normalize(patch_tokens.float(), dim=-1)
        return unit @ unit.transpose(1, 2)
