"""One optimizer step of pretraining: views, gradients of a batch, then all that changes when the step is accepted."""

import itertools
import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from selfpatch.config import OptimConfig, PretrainConfig, TeacherConfig
from selfpatch.data.augmentation.crops import Crops
from selfpatch.data.augmentation.device_augmentation import apply_color_batch
from selfpatch.data.augmentation.normalize import normalize
from selfpatch.data.augmentation.params import BatchedColorParams
from selfpatch.data.loading.loader import Batch
from selfpatch.optim.optimizer import optimizer_step, parameter_groups, set_schedules
from selfpatch.optim.schedules import Schedule, warmup_cosine
from selfpatch.pretraining.student_teacher import StudentTeacher
from selfpatch.training.loop import StepOutput
from selfpatch.training.precision import autocast_for

# The share of waiting for data above which something should be done.
MUCH_WAITING = 0.2


class Schedules(NamedTuple):
    """What changes with the step."""

    lr: Schedule
    weight_decay: Schedule
    momentum: Schedule


class PretrainTask:
    """What the loop trains: student, teacher and terms of the loss, on batches of crops.

    Args:
        record_bad_images: told what could not be read; returns how many images have turned out unreadable so far.
        files_of_step: names the images of a step, for the message when it diverges.
        data_wait_hint: what to do when steps wait for data, said once.
    """

    def __init__(
        self,
        student_teacher: StudentTeacher,
        optimizer: torch.optim.Optimizer,
        config: PretrainConfig,
        *,
        schedules: Schedules,
        steps_per_epoch: int,
        device: torch.device,
        record_bad_images: Callable[[list[tuple[Path, str]]], int],
        files_of_step: Callable[[int], list[Path]],
        data_wait_hint: str = "",
    ):
        assert isinstance(config.optim.batch_size, int)  # derived by now
        self.batch_size = config.optim.batch_size
        self._student_teacher, self._optimizer, self._config = student_teacher, optimizer, config
        self._schedules, self._steps_per_epoch, self._device = schedules, steps_per_epoch, device
        self._record_bad_images, self._files_of_step = record_bad_images, files_of_step
        self._autocast = autocast_for(config.efficiency.precision, device)
        self._num_images = self._num_bad_images = self._num_upsampled = 0
        self._warned_upsampled = False
        self._data_wait_hint = data_wait_hint
        self._logged = False

    def train_mode(self) -> None:
        self._student_teacher.train()

    def update(self, batch: Batch, step: int) -> StepOutput:
        assert batch.step == step
        self._num_bad_images = self._record_bad_images(batch.bad_images)
        self._num_images += batch.crops.num_images
        self._num_upsampled += batch.num_upsampled

        # 1. Views: the crops of this step, on the device, their colours changed there if not yet, normalised.
        parts = [
            (
                self._views(part.global_crops, part.global_color),
                None if part.local_crops is None else self._views(part.local_crops, part.local_color),
            )
            for part in split(batch.crops, self._config.optim.accumulate)
        ]

        # 2. Loss and gradients, over the parts of the batch.
        metrics = accumulate_gradients(self._student_teacher, parts, step, self._autocast)

        # 3. Clip, optimizer, teacher, centres; or nothing at all, if something is not finite on any rank.
        accepted = apply_gradients(
            self._student_teacher,
            self._optimizer,
            metrics["loss"],
            step,
            schedules=self._schedules,
            optim=self._config.optim,
        )
        return StepOutput(metrics, accepted)

    def state(self, step: int) -> dict[str, float]:
        return {
            "epoch": (step + 1) / self._steps_per_epoch,
            "lr": self._schedules.lr(step),
            "weight_decay": self._schedules.weight_decay(step),
            "momentum": self._schedules.momentum(step),
            "bad_images": self._num_bad_images,
            "upsampled_images": self._num_upsampled,
        }

    def note(self, means: dict[str, float], *, last: bool) -> str | None:
        notes = []
        if self._num_upsampled and (last or not self._warned_upsampled):
            self._warned_upsampled = True
            notes.append(
                f"warning: {self._num_upsampled} of {self._num_images} images so far were smaller than a global crop "
                f"({self._config.crops.global_size} px) and enlarged: their crops are blurred. A smaller crop "
                "(crops.global-size) shows them as they are"
            )
        # The first line of the log does not count: before it workers were started.
        if self._logged and means["data_wait"] > MUCH_WAITING and self._data_wait_hint:
            notes.append(f"{means['data_wait']:.0%} of the time steps wait for data. {self._data_wait_hint}")
            self._data_wait_hint = ""
        self._logged = True
        return "\n".join(notes) or None

    def diverged(self, step: int, metrics: dict[str, Tensor]) -> str:
        shown = ", ".join(map(str, self._files_of_step(step)[:4]))
        return (
            f"Its images begin with {shown}. A lower learning rate (optim.lr), a longer warm-up (optim.warmup-epochs) "
            "or float32 (efficiency.precision float32) most often helps; the last checkpoint is from before"
        )

    def _views(self, crops: Tensor, color: BatchedColorParams | None) -> Tensor:
        crops = crops.to(self._device, non_blocking=True)
        if color is not None:
            crops = apply_color_batch(crops, color)
        return normalize(crops, self._config.crops.mean, self._config.crops.std)


def split(crops: Crops, num_parts: int) -> list[Crops]:
    """Equal parts of the images."""
    bounds = [i * crops.num_images // num_parts for i in range(num_parts + 1)]
    return [crops.slice_images(start, stop) for start, stop in itertools.pairwise(bounds)]


def build_schedules(optim: OptimConfig, teacher: TeacherConfig, *, num_steps: int, steps_per_epoch: int) -> Schedules:
    """Source: DINO's main_dino.py; the learning rate is given for 256 images a batch."""
    assert optim.lr and optim.warmup_epochs is not None and teacher.momentum is not None  # derived
    assert isinstance(optim.batch_size, int)
    share = optim.batch_size / 256
    scale = {"linear": share, "sqrt": math.sqrt(share), "none": 1.0}[optim.lr_scaling]
    warmup_steps = min(round(optim.warmup_epochs * steps_per_epoch), num_steps)
    return Schedules(
        lr=warmup_cosine(optim.lr * scale, optim.min_lr, num_steps, warmup_steps),
        weight_decay=warmup_cosine(optim.weight_decay, optim.weight_decay_end, num_steps),
        momentum=warmup_cosine(teacher.momentum, teacher.momentum_end, num_steps),
    )


def build_optimizer(student_teacher: StudentTeacher) -> torch.optim.AdamW:
    """Learning rate and weight decay are set at every step. One pass over all parameters, where torch can."""
    return torch.optim.AdamW(parameter_groups(student_teacher), fused=True)


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
    set_schedules(optimizer, lr=schedules.lr(step), weight_decay=schedules.weight_decay(step))
    frozen = student_teacher.frozen_parameters(step)
    if not optimizer_step(optimizer, loss, max_norm=optim.clip_norm, by=optim.clip, frozen=frozen):
        student_teacher.discard()
        return False
    student_teacher.commit(schedules.momentum(step))
    return True
