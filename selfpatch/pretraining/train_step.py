"""One optimizer step of pretraining: views, gradients of a batch, then all that an accepted step changes."""

import math
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from selfpatch.config import OptimConfig, PretrainConfig, TeacherConfig, rows_columns
from selfpatch.data.loading.loader import Batch
from selfpatch.data.loading.sampler import EpochSampler
from selfpatch.distributed import gather_list, global_count, own_rows, world_size
from selfpatch.optim.late_compiler import AdamW
from selfpatch.optim.optimizer import layer_lr_scales, optimizer_step, parameter_groups, set_schedules
from selfpatch.optim.schedules import Schedule, late_ramp, warmup_cosine
from selfpatch.pretraining.health import Health, LossSpikes, State, teacher_distance
from selfpatch.pretraining.masks import draw_masks
from selfpatch.pretraining.parallel import OneProcess
from selfpatch.pretraining.student_teacher import StudentTeacher
from selfpatch.pretraining.train_state import TrainState
from selfpatch.pretraining.views import Views, make_views
from selfpatch.training.loop import StepOutput
from selfpatch.training.precision import autocast_for

# Fraction of the time spent waiting for data above which a hint is printed.
MUCH_WAITING = 0.2


class Schedules(NamedTuple):
    """Values that change with the step."""

    lr: Schedule
    weight_decay: Schedule
    momentum: Schedule
    backbone: Schedule = lambda step: 1.0  # the backbone's part of the learning rate, 0 while it rests


class PretrainTask:
    """The task of the training loop: student, teacher and objectives on batches of crops.

    Args:
        record_bad_images: given the unreadable images of a step; returns how many there have been so far.
        image_name: names an image by its index, for the message when training diverges.
        data_wait_hint: printed once when the run waits for data.
        model: this process's part of several (parallel.py); None: it is the only one.
    """

    def __init__(
        self,
        state: TrainState,
        config: PretrainConfig,
        *,
        schedules: Schedules,
        sampler: EpochSampler,
        device: torch.device,
        record_bad_images: Callable[[list[tuple[str, str]]], int],
        image_name: Callable[[int], str] = str,
        data_wait_hint: str = "",
        model: OneProcess | None = None,
    ):
        self.batch_size = sampler.batch_size
        self._state, self._config, self._schedules = state, config, schedules
        self._model = model or OneProcess(state.student_teacher)
        self._sampler, self._device, self._image_name = sampler, device, image_name
        self._record_bad_images = record_bad_images
        self._autocast = autocast_for(config.efficiency.precision, device)
        self._num_bad_images = 0
        self._warned_upsampled = False
        self._data_wait_hint = data_wait_hint
        self._logged = False
        self._health, self._spikes = Health(), LossSpikes()

    def train_mode(self) -> None:
        self._state.student_teacher.train()

    def step(self, batch: Batch, step: int) -> StepOutput:
        assert batch.step == step
        student_teacher, counters = self._state.student_teacher, self._state.counters
        student_teacher.freeze_backbone(self._schedules.backbone(step) == 0)
        self._num_bad_images = self._record_bad_images(gather_list(batch.bad_images))
        counters.images += batch.crops.num_images * world_size()
        counters.upsampled_images += global_count(batch.num_upsampled)

        # 1. Views: crops on the device, colors changed, normalized; one part of the batch at a time.
        num_parts = self._config.optim.accumulate
        views = make_views(
            batch.crops, self._config.crops, self._device, num_parts=num_parts, masks=self._draw_masks(step)
        )

        # 2. Loss and gradients, over the parts of the batch.
        metrics = accumulate_gradients(
            self._model, views, step, self._autocast, num_parts=num_parts, accumulating=self._model.accumulating
        )

        # 3. Clip, optimizer, teacher, centers; or nothing at all, if something is not finite on any rank.
        applied = apply_gradients(
            student_teacher,
            self._state.optimizer,
            metrics["loss"],
            step,
            schedules=self._schedules,
            optim=self._config.optim,
        )
        counters.skipped_steps += not applied
        self._state.step = step + 1
        return StepOutput(metrics, applied)

    def log_scalars(self, step: int) -> dict[str, float]:
        return {
            "epoch": (step + 1) / self._sampler.steps_per_epoch,
            "lr": self._schedules.lr(step),
            "weight_decay": self._schedules.weight_decay(step),
            "momentum": self._schedules.momentum(step),
            "backbone_lr": self._schedules.lr(step) * self._schedules.backbone(step),
            "teacher/distance": teacher_distance(self._state.student_teacher.ema_pairs()),
            "bad_images": self._num_bad_images,
            "upsampled_images": self._state.counters.upsampled_images,
            "skipped_steps": self._state.counters.skipped_steps,
        }

    def log_message(self, means: dict[str, float], *, last: bool) -> str | None:
        messages: list[str] = []
        counters = self._state.counters
        spike = self._spikes.update(means.get("loss", math.nan), means.get("loss_max", math.nan))
        messages += filter(None, [spike, self._health.update(means)])
        if counters.upsampled_images and (last or not self._warned_upsampled):
            self._warned_upsampled = True
            messages.append(
                f"warning: {counters.upsampled_images} of {counters.images} images so far were smaller than a global "
                f"crop ({self._config.crops.global_size} px) and enlarged: their crops are blurred. A smaller crop "
                "(crops.global-size) shows them as they are"
            )
        # Not the first line of the log: before it workers were started.
        if self._logged and means["data_wait"] > MUCH_WAITING and self._data_wait_hint:
            messages.append(f"{means['data_wait']:.0%} of the time steps wait for data. {self._data_wait_hint}")
            self._data_wait_hint = ""
        self._logged = True
        return "\n".join(messages) or None

    @property
    def must_stop(self) -> bool:
        """True if the run has collapsed and is to stop then."""
        return self._config.run.stop_on_collapse and self._health.state == State.COLLAPSED

    def divergence_hint(self, step: int, metrics: dict[str, Tensor]) -> str:
        names = ", ".join(self._image_name(int(index)) for index in self._sampler.indices(step)[:4])
        return (
            f"Its images begin with {names}. A lower learning rate (optim.lr), a longer warm-up (optim.warmup-epochs) "
            "or float32 (efficiency.precision float32) most often helps; no checkpoint was written since"
        )

    def _draw_masks(self, step: int) -> Bool[Tensor, "G B N"] | None:
        student_teacher = self._state.student_teacher
        masks = student_teacher.masks_at(step)
        if masks is None:
            return None
        share = self._sampler.batch_size // world_size()
        return draw_masks(
            masks,
            own_rows(torch.from_numpy(self._sampler.indices(step)), share).tolist(),
            seed=self._config.seed,
            step=step,
            num_crops=self._config.crops.num_global,
            grid_size=student_teacher.student.backbone.grid_size(rows_columns(self._config.crops.global_size)),
        )


def build_schedules(optim: OptimConfig, teacher: TeacherConfig, *, num_steps: int, steps_per_epoch: int) -> Schedules:
    """Source: DINO's main_dino.py; the learning rate is given for 256 images per batch."""
    assert optim.lr and optim.warmup_epochs is not None and teacher.momentum is not None  # derived
    assert isinstance(optim.batch_size, int)
    ratio = optim.batch_size / 256
    scale = {"linear": ratio, "sqrt": math.sqrt(ratio), "none": 1.0}[optim.lr_scaling]
    warmup_steps = min(round(optim.warmup_epochs * steps_per_epoch), num_steps)
    return Schedules(
        lr=warmup_cosine(optim.lr * scale, optim.min_lr, num_steps, warmup_steps),
        weight_decay=warmup_cosine(optim.weight_decay, optim.weight_decay_end, num_steps),
        momentum=warmup_cosine(teacher.momentum, teacher.momentum_end, num_steps),
        backbone=late_ramp(round((optim.freeze_backbone_epochs or 0) * steps_per_epoch), warmup_steps),
    )


def build_optimizer(student_teacher: StudentTeacher, optim: OptimConfig | None = None) -> AdamW:
    """Learning rate and weight decay are set at every step. One pass over all parameters, where torch can.

    Args:
        optim: None: one learning rate for all parameters.
    """
    backbone = student_teacher.student.backbone
    decay = 1.0 if optim is None or optim.layer_decay is None else optim.layer_decay
    groups = parameter_groups(
        student_teacher,
        lr_scales=layer_lr_scales(backbone.model, decay) if decay < 1 else None,
        late=backbone if optim is not None and optim.freeze_backbone_epochs else None,
    )
    return AdamW(groups, fused=True)


def accumulate_gradients(
    student_teacher: StudentTeacher | OneProcess,
    parts: Iterable[Views],
    step: int,
    autocast: Callable[[], AbstractContextManager],
    *,
    num_parts: int = 1,
    accumulating: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> dict[str, Tensor]:
    """Forward and backward over the parts of a batch, all of equal size; returns the mean loss and signals.

    The loss is a mean over images, so the mean of the parts' gradients is the whole batch's gradient. On several ranks
    these are parts of a rank's share; gradients are averaged over ranks with the last part, and losses are not.

    Args:
        accumulating: entered for all parts but the last.
    """
    sums: dict[str, Tensor] = {}
    waiting = iter(parts)
    for number in range(1, num_parts + 1):  # not by enumerate, which holds what it gave until it gives the next
        views = next(waiting)
        with accumulating() if number < num_parts else nullcontext():
            with autocast():
                loss, metrics = student_teacher(views, step)
            del views  # before the next part is made: two would be held in float
            (loss / num_parts).backward()
        for name, value in ({"loss": loss.detach()} | metrics).items():
            sums[name] = sums[name] + value if name in sums else value
    return {name: value / num_parts for name, value in sums.items()}


def apply_gradients(
    student_teacher: StudentTeacher,
    optimizer: torch.optim.Optimizer,
    loss: Float[Tensor, ""],
    step: int,
    *,
    schedules: Schedules,
    optim: OptimConfig,
) -> bool:
    """Clip, update the student, let teachers and centers follow; False if the step was skipped.

    A step whose loss or gradient is not finite on any rank is skipped on all of them: weights, teachers and centers
    stay as they were.
    """
    set_schedules(
        optimizer,
        lr=schedules.lr(step),
        weight_decay=schedules.weight_decay(step),
        late_factor=schedules.backbone(step),
    )
    frozen = student_teacher.frozen_parameters(step)
    if not optimizer_step(optimizer, loss, max_norm=optim.clip_norm, by=optim.clip_mode, frozen=frozen):
        student_teacher.discard()
        return False
    student_teacher.commit(schedules.momentum(step))
    return True
