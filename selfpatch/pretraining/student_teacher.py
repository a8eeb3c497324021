"""Student and teacher: encode every view once per network, sum the objectives, let the teacher follow."""

import copy
import math
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from selfpatch.backbones.attention import use_plain_attention
from selfpatch.backbones.backbone import Backbone
from selfpatch.config import EfficiencyConfig, PretrainConfig
from selfpatch.config.masks import MaskConfig
from selfpatch.errors import UserError
from selfpatch.objectives.encoder import Encoder
from selfpatch.objectives.objective import Objective
from selfpatch.objectives.registry import build_objectives
from selfpatch.optim.optimizer import update_moving_average
from selfpatch.pretraining.health import token_signals
from selfpatch.pretraining.views import Views

# Beyond them the weights of plain attention take more memory and time than they save.
MAX_PLAIN_TOKENS = 512


class StudentTeacher(nn.Module):
    """All that is trained, and the loss: `forward(views, step) -> (loss, metrics)`.

    It knows no objective by name. It encodes what they need, hands both networks' encodings to each, and keeps all
    teachers (the encoder's and those that objectives own) following their students.
    """

    def __init__(self, encoder: Encoder, objectives: dict[str, Objective]):
        super().__init__()
        needs = [objective.needs for objective in objectives.values()]
        self._student_local = any(need.student_local for need in needs)
        self._teacher_local = any(need.teacher_local for need in needs)
        self.needs_recolored = any(need.recolored for need in needs)
        self.needs_boxes = any(need.boxes for need in needs)
        self._teacher_layers = sorted({need.teacher_layer for need in needs if need.teacher_layer is not None})
        for name, objective in objectives.items():
            if objective.needs.teacher_layer is not None:
                require_layer(encoder.backbone, objective.needs.teacher_layer, f"objectives.{name}.layer")
        masking = [need for need in needs if need.masks]
        # Masks of the student's global crops; objectives that disagree are refused by their settings.
        self.masks: MaskConfig | None = masking[0].masks if masking else None
        assert all(need.masks == self.masks for need in masking)
        self._masks_from_step = min((need.masks_from_step for need in masking), default=0)
        if self.masks is not None:
            encoder.backbone.enable_masks()  # before the copy: the teacher has the same parameters
        self.student = encoder
        self.teacher = copy.deepcopy(encoder).requires_grad_(False)
        self.objectives = nn.ModuleDict(objectives)
        disable_stochastic_depth(self.teacher)
        # By name: FSDP2 puts other parameters in their place.
        self._trained_in_backbone = [name for name, p in self.student.backbone.named_parameters() if p.requires_grad]
        for objective in self.named_objectives.values():
            objective.attach_teacher(self.teacher)

    def forward(self, views: Views, step: int) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """The weighted sum of the objectives, and all signals as "objective/signal"."""
        with torch.no_grad():
            # Image-level objectives compare different crops, whose colors are drawn apart anyway.
            global_crops = views.recolored_crops if self.needs_recolored else views.global_crops
            assert global_crops is not None, "objectives that need recolored crops are given them"
            teacher = self.teacher.encode(
                global_crops, views.local_crops if self._teacher_local else None, layers=self._teacher_layers
            )
        student = self.student.encode(
            views.global_crops, views.local_crops if self._student_local else None, views.masks
        )
        boxes = {"global_boxes": views.global_boxes, "local_boxes": views.local_boxes}
        student, teacher = student._replace(**boxes), teacher._replace(**boxes)
        metrics = token_signals(views, teacher)
        total = torch.zeros((), device=views.global_crops.device)
        for name, objective in self.named_objectives.items():
            loss, signals = objective(student, teacher, step)
            total = total + objective.weight_at(step) * loss
            metrics |= {f"{name}/{key}": signal for key, signal in ({"loss": loss.detach()} | signals).items()}
        return total, metrics

    def masks_at(self, step: int) -> MaskConfig | None:
        """Masks of the student's global crops in a step; None: they are not masked, or not yet."""
        return self.masks if step >= self._masks_from_step else None

    @property
    def named_objectives(self) -> dict[str, Objective]:
        return cast(dict[str, Objective], dict(self.objectives.items()))

    def ema_pairs(self) -> list[tuple[nn.Module, nn.Module]]:
        """All pairs of a student's module and the teacher's that follows it, each once."""
        pairs = [(self.student, self.teacher)]
        pairs += [pair for objective in self.named_objectives.values() for pair in objective.ema_pairs()]
        return list(dict.fromkeys(pairs))  # two objectives may share their heads

    def commit(self, momentum: float) -> None:
        """Apply an accepted step: centers move, teachers follow."""
        for objective in self.named_objectives.values():
            objective.commit()
        update_moving_average(self.ema_pairs(), momentum)

    def discard(self) -> None:
        """Leave nothing of a skipped step."""
        for objective in self.named_objectives.values():
            objective.discard()

    def freeze_backbone(self, frozen: bool) -> None:
        """Let the student's backbone rest, or train as it was built: at rest it has no gradients, and needs no time."""
        parameters = dict(self.student.backbone.named_parameters())
        for name in self._trained_in_backbone:
            parameters[name].requires_grad_(not frozen)

    def frozen_parameters(self, step: int) -> list[nn.Parameter]:
        return [p for o in self.named_objectives.values() for p in o.frozen_parameters(self.student, step)]


def build_student_teacher(backbone: Backbone, config: PretrainConfig, *, steps_per_epoch: int) -> StudentTeacher:
    objectives = build_objectives(config.objectives, backbone.embed_dim, steps_per_epoch=steps_per_epoch)
    if config.optim.trainable_blocks is not None:
        backbone.freeze_below_last_blocks(config.optim.trainable_blocks)
    return StudentTeacher(Encoder(backbone, config.aggregator, image_token=config.backbone.image_token), objectives)


def require_layer(backbone: Backbone, layer: int, setting: str) -> None:
    """
    Raises:
        UserError: the backbone has no such stage, or its tokens lie on another grid than those of the output.
    """
    count = len(backbone.stages)
    allowed = [i for i, stage in enumerate(backbone.stages) if stage.stride_px == backbone.patch_size]
    if layer not in allowed and layer + count not in allowed:
        numbers = ", ".join(map(str, allowed))
        raise UserError(
            f"{setting} is {layer}; of the {count} stages of {backbone.architecture.name} (blocks of a plain vision "
            f"transformer, from 0, or from the end by -1) {numbers} have patches of the output's size: choose one of "
            "them, or leave it out for the output"
        )


def apply_efficiency(student_teacher: StudentTeacher, config: EfficiencyConfig) -> None:
    """Change speed and memory of student and teacher, and not what they compute."""
    student_teacher.student.backbone.set_activation_checkpointing(config.activation_checkpointing)
    if config.compile:
        for encoder in (student_teacher.student, student_teacher.teacher):
            encoder.backbone.compile_blocks()


def plain_attention_of_small_crops(student_teacher: StudentTeacher, image_size: tuple[int, int]) -> None:
    """In bf16 on a CPU the backward pass of fused attention is up to nine times slower than that of a plain one."""
    backbone = student_teacher.student.backbone
    if math.prod(backbone.grid_size(image_size)) <= MAX_PLAIN_TOKENS:
        for block in backbone.blocks:
            use_plain_attention(block)


def disable_stochastic_depth(module: nn.Module) -> None:
    part: Any
    for part in module.modules():
        if hasattr(part, "drop_prob"):  # timm's DropPath
            part.drop_prob = 0.0
