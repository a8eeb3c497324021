"""Everything of a run that a checkpoint holds: weights, optimizer, step, counters."""

import re
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from selfpatch.distributed import whole_tensor
from selfpatch.errors import UserError
from selfpatch.optim.optimizer import load_optimizer_state, optimizer_state, positional_names
from selfpatch.output.checkpoint import Checkpoint, DamagedCheckpointError, require
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
        """By file, then by name. Sharded ones whole, on rank 0; all ranks call it."""
        tensors = {
            "model": self.student_teacher.state_dict(),
            "optimizer": optimizer_state(self.optimizer, self.student_teacher),
        }
        return {file: {name: whole_tensor(x) for name, x in group.items()} for file, group in tensors.items()}

    def state(self) -> dict[str, Any]:
        """Plain values, as JSON holds them."""
        return {"format": FORMAT, "step": self.step, "counters": asdict(self.counters)}

    def load(self, found: Checkpoint) -> None:
        """
        Raises:
            DamagedCheckpointError: no run with this model can have written it.
            UserError: it was written by a newer version.
        """
        require_pretraining_checkpoint(found)
        version = found.state.get("format", 1)
        if version > FORMAT:
            raise UserError(
                f"{found.path} was written by a newer version (format {version}, {FORMAT} is the newest "
                "known); update selfpatch"
            )
        model, optimizer = found.tensors["model"], found.tensors["optimizer"]
        try:
            if version == 1:
                model = {_name_of_format_1(name): tensor for name, tensor in model.items()}
                optimizer = positional_names(optimizer, self.student_teacher)
            self.student_teacher.load_state_dict(model)
            load_optimizer_state(self.optimizer, optimizer, self.student_teacher)
        except (RuntimeError, UserError) as error:
            reason = " ".join(str(error).split())[:500]
            raise DamagedCheckpointError(f"{found.path} holds another model: {reason}") from error
        self.step = found.state["step"]
        self.counters = Counters(**found.state.get("counters", {}))


def require_pretraining_checkpoint(found: Checkpoint) -> None:
    """
    Raises:
        DamagedCheckpointError: it is another kind of checkpoint, such as that of an evaluation's head, or its state is
            damaged.
    """
    if not {"step", "method"} <= found.state.keys() or not {"model", "optimizer"} <= found.tensors.keys():
        raise DamagedCheckpointError(
            f"{found.path} is no checkpoint of a pretraining run; give one such as RUN/checkpoints/step-00001000"
        )
    later = {"images": str, "format": int, "counters": dict}  # not in the earliest checkpoints
    types = {"step": int, "method": dict} | {name: kind for name, kind in later.items() if name in found.state}
    require(found, state=types, tensors=())
    counters = found.state.get("counters", {})
    if not counters.keys() <= asdict(Counters()).keys() or not all(type(count) is int for count in counters.values()):
        raise DamagedCheckpointError(f"{found.path / 'state.json'} is damaged: its counters are {counters!r}")
    if found.state["step"] < 0:
        raise DamagedCheckpointError(f"{found.path / 'state.json'} is damaged: its step is {found.state['step']}")


def _name_of_format_1(name: str) -> str:
    return re.sub(r"^objectives\.(\w+)\.(head|teacher_head|distillation)\.", r"objectives.\1.branch.\2.", name)
