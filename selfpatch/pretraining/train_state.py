"""Everything of a run that a checkpoint holds: weights, optimizer, step, counters."""

import re
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from selfpatch.errors import UserError
from selfpatch.optim.optimizer import load_optimizer_state, optimizer_state, positional_names
from selfpatch.output.checkpoint import Checkpoint
from selfpatch.pretraining.student_teacher import StudentTeacher

# 1: optimizer state by position, heads directly in their objectives, no counters. 2: optimizer state by parameter name.
FORMAT = 2


@dataclass
class Counters:
    """Counts of a run since its first step, whatever it was stopped by in between."""

    images: int = 0
    upsampled_images: int = 0
    skipped_steps: int = 0


class TrainState:
    """Student, teacher, objectives and optimizer, with the number of steps done. Saves and loads as one."""

    def __init__(self, student_teacher: StudentTeacher, optimizer: torch.optim.Optimizer):
        self.student_teacher = student_teacher
        self.optimizer = optimizer
        self.step = 0  # steps done
        self.counters = Counters()

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """By file, then by name."""
        return {
            "model": self.student_teacher.state_dict(),
            "optimizer": optimizer_state(self.optimizer, self.student_teacher),
        }

    def state(self) -> dict[str, Any]:
        """Plain values, as JSON holds them."""
        return {"format": FORMAT, "step": self.step, "counters": asdict(self.counters)}

    def load(self, found: Checkpoint) -> None:
        """
        Raises:
            UserError: not a checkpoint of a pretraining run, written by a newer version, or of another model.
        """
        require_pretraining_checkpoint(found)
        version = found.state.get("format", 1)
        if version > FORMAT:
            raise UserError(
                f"{found.path} was written by a newer version (format {version}, {FORMAT} is the newest "
                "known); update selfpatch"
            )
        model, optimizer = found.tensors["model"], found.tensors["optimizer"]
        if version == 1:
            model = {_name_of_format_1(name): tensor for name, tensor in model.items()}
            optimizer = positional_names(optimizer, self.student_teacher)
        try:
            self.student_teacher.load_state_dict(model)
        except RuntimeError as error:
            raise UserError(f"{found.path} holds another model: {' '.join(str(error).split())[:500]}") from error
        load_optimizer_state(self.optimizer, optimizer, self.student_teacher)
        self.step = found.state["step"]
        self.counters = Counters(**found.state.get("counters", {"images": 0}))


def require_pretraining_checkpoint(found: Checkpoint) -> None:
    """
    Raises:
        UserError: it is another kind of checkpoint, such as that of an evaluation's head.
    """
    if not {"step", "method"} <= found.state.keys() or not {"model", "optimizer"} <= found.tensors.keys():
        raise UserError(
            f"{found.path} is no checkpoint of a pretraining run; give one such as RUN/checkpoints/step-00001000"
        )


def _name_of_format_1(name: str) -> str:
    return re.sub(r"^objectives\.(\w+)\.(head|teacher_head|distillation)\.", r"objectives.\1.branch.\2.", name)
