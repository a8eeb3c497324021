"""Student and teacher: encode every view once a network, sum the terms of the loss, let the teacher follow."""

import copy
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from selfpatch.backbones.backbone import Backbone
from selfpatch.config import EfficiencyConfig, ObjectivesConfig, PretrainConfig
from selfpatch.objectives.class_attention import Aggregator
from selfpatch.objectives.dino import DINO
from selfpatch.objectives.objective import EncodedViews, Encoder, Objective, without_gradient
from selfpatch.objectives.selfpatch import SelfPatch
from selfpatch.optim.optimizer import update_moving_average

OBJECTIVES = {"dino": DINO, "selfpatch": SelfPatch}


class StudentTeacher(nn.Module):
    """The whole of what is trained, and the loss: `forward(views, step) -> (loss, metrics)`.

    It knows no objective by name. It encodes what the terms ask for, hands both encodings to each, and keeps all
    teachers (the encoder's and those that terms own) following their students.
    """

    def __init__(self, encoder: Encoder, objectives: dict[str, Objective]):
        super().__init__()
        self.student = encoder
        self.teacher = without_gradient(copy.deepcopy(encoder))
        self.objectives = nn.ModuleDict(objectives)
        # Nothing is encoded that no term reads.
        self._teacher_sees_local = any(term.teacher_crops == "all" for term in objectives.values())
        self._student_sees_local = any(term.student_crops == "all" for term in objectives.values())
        disable_stochastic_depth(self.teacher)

    def forward(
        self,
        global_crops: Float[Tensor, "G B 3 H W"],
        local_crops: Float[Tensor, "L B 3 h w"] | None,
        step: int,
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """The weighted sum of the terms, and all signals named "term/signal". Crops are normalised images."""
        with torch.no_grad():
            teacher = encode(self.teacher, global_crops, local_crops if self._teacher_sees_local else None)
        student = encode(self.student, global_crops, local_crops if self._student_sees_local else None)
        metrics = {}
        loss = torch.zeros((), device=global_crops.device)
        for name, term in self.terms.items():
            value, signals = term(student, teacher, step)
            loss = loss + term.weight * value
            metrics |= {f"{name}/{key}": signal for key, signal in ({"loss": value.detach()} | signals).items()}
        return loss, metrics

    @property
    def terms(self) -> dict[str, Objective]:
        return cast(dict[str, Objective], dict(self.objectives.items()))

    def ema_pairs(self) -> list[tuple[nn.Module, nn.Module]]:
        """All pairs of a student's module and the teacher's that follows it."""
        return [(self.student, self.teacher), *(pair for term in self.terms.values() for pair in term.ema_pairs())]

    def commit(self, momentum: float) -> None:
        """The step is accepted: teachers follow, centres move."""
        update_moving_average(self.ema_pairs(), momentum)
        for term in self.terms.values():
            term.commit()

    def discard(self) -> None:
        """The step is not accepted: nothing of it stays."""
        for term in self.terms.values():
            term.discard()

    def frozen_parameters(self, step: int) -> list[nn.Parameter]:
        return [p for term in self.terms.values() for p in term.frozen_parameters(step)]

    def export_backbone(self) -> Backbone:
        """A copy of the teacher's backbone as it is shipped: in evaluation mode, as timm runs it, with a final norm.

        A backbone without a norm of its own takes the aggregator's, which its patch tokens go through in training.
        """
        backbone = copy.deepcopy(self.teacher.backbone).eval()
        backbone.compile_blocks(None)  # images of all sizes will come
        aggregator = self.teacher.aggregator
        if isinstance(backbone.final_norm, nn.Identity) and isinstance(aggregator, Aggregator):
            backbone.final_norm = copy.deepcopy(aggregator.norm)
            backbone.final_norm_from_aggregator = True
        backbone.pos_embed_interpolation = "timm"
        return backbone


def encode(
    encoder: Encoder, global_crops: Float[Tensor, "G B 3 H W"], local_crops: Float[Tensor, "L B 3 h w"] | None
) -> EncodedViews:
    return EncodedViews(
        encoder=encoder,
        num_images=global_crops.shape[1],
        global_crops=encoder.backbone(global_crops.flatten(0, 1)),
        local_crops=None if local_crops is None else encoder.backbone(local_crops.flatten(0, 1)),
    )


def build_objectives(config: ObjectivesConfig, dim: int, *, steps_per_epoch: int) -> dict[str, Objective]:
    return {
        name: objective(dim, settings, steps_per_epoch=steps_per_epoch)
        for name, objective in OBJECTIVES.items()
        if (settings := getattr(config, name)) is not None
    }


def build_student_teacher(backbone: Backbone, config: PretrainConfig, *, steps_per_epoch: int) -> StudentTeacher:
    objectives = build_objectives(config.objectives, backbone.embed_dim, steps_per_epoch=steps_per_epoch)
    return StudentTeacher(Encoder(backbone, config.aggregator), objectives)


def apply_efficiency(student_teacher: StudentTeacher, config: EfficiencyConfig) -> None:
    """What changes speed and memory of student and teacher, and not what they compute."""
    student_teacher.student.backbone.set_activation_checkpointing(config.activation_checkpointing)
    if config.compile:
        for encoder in (student_teacher.student, student_teacher.teacher):
            encoder.backbone.compile_blocks()


def disable_stochastic_depth(module: nn.Module) -> None:
    part: Any
    for part in module.modules():
        if hasattr(part, "drop_prob"):  # timm's DropPath
            part.drop_prob = 0.0
