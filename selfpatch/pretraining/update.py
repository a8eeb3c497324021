"""One optimizer step: gradients of a batch, then everything that changes when the step is accepted."""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from selfpatch.config import OptimConfig, TeacherConfig
from selfpatch.distributed import any_rank
from selfpatch.optim import clip_gradients, gradient_norms, parameter_groups, set_schedules
from selfpatch.pretraining.student_teacher import StudentTeacher
from selfpatch.schedules import Schedule, warmup_cosine


class Schedules(NamedTuple):
    """What changes with the step."""

    lr: Schedule
    weight_decay: Schedule
    momentum: Schedule


def build_schedules(optim: OptimConfig, teacher: TeacherConfig, *, num_steps: int, steps_per_epoch: int) -> Schedules:
    """Source: DINO's main_dino.py; the learning rate is given for 256 images a batch."""
    assert optim.batch_size and optim.lr and optim.warmup_epochs is not None and teacher.momentum is not None  # derived
    share = optim.batch_size / 256
    scale = {"linear": share, "sqrt": math.sqrt(share), "none": 1.0}[optim.lr_scaling]
    warmup_steps = min(round(optim.warmup_epochs * steps_per_epoch), num_steps)
    return Schedules(
        lr=warmup_cosine(optim.lr * scale, optim.min_lr, num_steps, warmup_steps),
        weight_decay=warmup_cosine(optim.weight_decay, optim.weight_decay_end, num_steps),
        momentum=warmup_cosine(teacher.momentum, teacher.momentum_end, num_steps),
    )


def build_optimizer(student_teacher: StudentTeacher) -> torch.optim.AdamW:
    """Learning rate and weight decay are set at every step."""
    return torch.optim.AdamW(parameter_groups(student_teacher))


def accumulate_gradients(
    student_teacher: StudentTeacher,
    parts: list[tuple[Float[Tensor, "G B 3 H W"], Float[Tensor, "L B 3 h w"] | None]],
    step: int,
    autocast: Callable[[], AbstractContextManager],
) -> dict[str, Tensor]:
    """Forward and backward over the parts of a batch, all of equal size; returns the mean loss and signals.

    The loss is a mean over images, so the mean of the parts' gradients is the whole batch's gradient.
    """
    sums: dict[str, Tensor] = {}
    for global_crops, local_crops in parts:
        with autocast():
            loss, metrics = student_teacher(global_crops, local_crops, step)
        (loss / len(parts)).backward()
        for name, value in ({"loss": loss.detach()} | metrics).items():
            sums[name] = sums[name] + value if name in sums else value
    return {name: value / len(parts) for name, value in sums.items()}


def apply_gradients(
    student_teacher: StudentTeacher,
    optimizer: torch.optim.Optimizer,
    loss: Float[Tensor, ""],
    step: int,
    *,
    schedules: Schedules,
    optim: OptimConfig,
) -> bool:
    """Clip, update the student, let teachers and centres follow; False if the step was skipped.

    A step whose loss or gradient is not finite on any rank is skipped on all of them: weights, teachers and centres
    stay as they were.
    """
    parameters = [p for p in student_teacher.parameters() if p.requires_grad]
    norms = gradient_norms(parameters)
    finite = bool(torch.isfinite(norms).all() & torch.isfinite(loss))
    if any_rank(not finite, loss.device):
        optimizer.zero_grad(set_to_none=True)
        student_teacher.discard()
        return False
    clip_gradients(parameters, norms, max_norm=optim.clip_norm, by=optim.clip)
    for parameter in student_teacher.frozen_parameters(step):
        parameter.grad = None
    set_schedules(optimizer, lr=schedules.lr(step), weight_decay=schedules.weight_decay(step))
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    student_teacher.commit(schedules.momentum(step))
    return True
