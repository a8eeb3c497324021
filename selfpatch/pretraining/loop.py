"""The training loop, in numbered steps. What it calls on the way (scores, pictures, saving) is handed in."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from selfpatch.config import PretrainConfig
from selfpatch.data.loader import Batch
from selfpatch.data.multi_crop import normalize
from selfpatch.distributed import any_rank, rank
from selfpatch.metric_logger import MetricLogger, TrainingProgress
from selfpatch.pretraining.memory import peak_memory_mb
from selfpatch.pretraining.student_teacher import StudentTeacher
from selfpatch.pretraining.update import Schedules, accumulate_gradients, apply_gradients


class DivergenceError(RuntimeError):
    """Step after step without a finite loss and gradient."""


# Something done now and then with the model as it is after so many steps; what it returns is logged.
Callback = Callable[[StudentTeacher, int], dict[str, float]]


class Every(NamedTuple):
    """When a callback is called: every so many steps and after the last; also at the start or when stopped, if said."""

    steps: int
    callback: Callback
    at_start: bool = False
    at_stop: bool = False


def train(
    student_teacher: StudentTeacher,
    optimizer: torch.optim.Optimizer,
    batches: Iterator[Batch],
    config: PretrainConfig,
    *,
    schedules: Schedules,
    first_step: int,
    num_steps: int,
    steps_per_epoch: int,
    device: torch.device,
    logger: MetricLogger,
    progress: TrainingProgress,
    callbacks: Sequence[Every] = (),
    note_bad_images: Callable[[list[tuple[Path, str]]], int],
    files_of_step: Callable[[int], list[Path]],
    should_stop: Callable[[int], bool] = lambda done: False,
) -> int:
    """Train from `first_step` to `num_steps`, or until `should_stop(steps done)`; returns the number of steps done.

    Random numbers on the device (stochastic depth) are drawn anew from (seed, step, rank) at every step, so that a run
    that goes on sees the same ones.

    Raises:
        DivergenceError: `config.run.max_skipped` steps in a row were not finite; the model is as it was before them.
    """
    autocast = autocast_for(config.efficiency.precision, device)

    def views_of(crops: Tensor) -> Tensor:
        return normalize(crops.to(device, non_blocking=True), config.crops.mean, config.crops.std)

    interval = Interval(config.optim.batch_size)
    skipped = skipped_in_a_row = num_bad_images = num_upscaled = 0
    warned_upscaled = False
    student_teacher.train()

    if first_step == 0:
        for every in callbacks:
            if every.at_start:
                _call(every.callback, student_teacher, 0, logger)

    step = first_step
    for step in range(first_step, num_steps):
        # 1. Views: the crops of this step, made by the workers while the step before was computed.
        with interval.waiting():
            batch = next(batches)
        assert batch.step == step
        num_bad_images = note_bad_images(batch.bad_images)
        num_upscaled += batch.num_upscaled
        parts = [
            (views_of(global_crops), None if local_crops is None else views_of(local_crops))
            for global_crops, local_crops in split(batch, config.optim.accumulate)
        ]

        # 2. Loss and gradients, over the parts of the batch.
        torch.manual_seed((config.seed * 1_000_003 + step) * 4096 + rank())
        metrics = accumulate_gradients(student_teacher, parts, step, autocast)

        # 3. Clip, optimizer, teacher, centres; or nothing at all, if something is not finite on any rank.
        if apply_gradients(student_teacher, optimizer, metrics["loss"], step, schedules=schedules, optim=config.optim):
            interval.add(metrics)
            skipped_in_a_row = 0
        else:
            skipped += 1
            skipped_in_a_row += 1
            progress.say(
                f"step {step + 1}: the loss or a gradient is not finite; the step is skipped ({skipped} so far)"
            )
            if skipped_in_a_row >= config.run.max_skipped:
                raise DivergenceError(_diverged(step, skipped_in_a_row, metrics, files_of_step(step), config.seed))

        # 4. Log.
        done = step + 1
        progress.step(step)
        if (done % config.run.log_every == 0 or done == num_steps or done == first_step + 1) and interval.count:
            means = interval.means() | {
                "epoch": done / steps_per_epoch,
                "lr": schedules.lr(step),
                "weight_decay": schedules.weight_decay(step),
                "momentum": schedules.momentum(step),
                "skipped_steps": skipped,
                "bad_images": num_bad_images,
                "upscaled_images": num_upscaled,
                "memory_mb": peak_memory_mb(device),
            }
            logger.log(done, means)
            progress.show(step, means)
            if num_upscaled and (done == num_steps or not warned_upscaled):
                warned_upscaled = True
                progress.say(_upscaled(num_upscaled, (done - first_step) * batch.global_crops.shape[1], config))
            interval = Interval(config.optim.batch_size)

        # 5. Now and then: scores, pictures, checkpoints. On a signal every rank stops at the same step, and saves.
        stop = any_rank(should_stop(done), device)
        for every in callbacks:
            if done % every.steps == 0 or done == num_steps or (stop and every.at_stop):
                with interval.paused():
                    _call(every.callback, student_teacher, done, logger)
        if stop:
            return done
    return num_steps


class Interval:
    """Means over the steps between two lines of the log, and what share of the time went into waiting for data."""

    def __init__(self, batch_size: int | None):
        self._batch_size = batch_size or 0
        self._sums: dict[str, Tensor] = {}
        self._start = time.perf_counter()
        self._waited = 0.0
        self.count = 0

    def add(self, metrics: dict[str, Tensor]) -> None:
        for name, value in metrics.items():
            self._sums[name] = self._sums[name] + value if name in self._sums else value
        self.count += 1

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """What happens inside is waiting for data."""
        start = time.perf_counter()
        yield
        self._waited += time.perf_counter() - start

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What happens inside does not count."""
        start = time.perf_counter()
        yield
        self._start += time.perf_counter() - start

    def means(self) -> dict[str, float]:
        values = torch.stack([value.float() for value in self._sums.values()]).div(self.count).tolist()
        seconds = time.perf_counter() - self._start
        rates = {"images_per_second": self.count * self._batch_size / seconds, "data_wait": self._waited / seconds}
        return dict(zip(self._sums, values, strict=True)) | rates


def split(batch: Batch, num_parts: int) -> list[tuple[Tensor, Tensor | None]]:
    """The crops of `num_parts` equal parts of the images."""
    global_parts = batch.global_crops.chunk(num_parts, dim=1)
    local_parts = [None] * num_parts if batch.local_crops is None else batch.local_crops.chunk(num_parts, dim=1)
    return list(zip(global_parts, local_parts, strict=True))


def autocast_for(precision: str, device: torch.device) -> Callable[[], AbstractContextManager]:
    """bf16 where it was asked for, or where "auto" finds a GPU that has it; losses cast themselves to float32."""
    if precision == "auto" and device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
        precision = "bf16"
    if precision == "bf16":
        return lambda: torch.autocast(device.type, dtype=torch.bfloat16)
    return nullcontext


def _call(callback: Callback, student_teacher: StudentTeacher, step: int, logger: MetricLogger) -> None:
    if values := callback(student_teacher, step):
        logger.log(step, values)
    student_teacher.train()


def _upscaled(count: int, num_images: int, config: PretrainConfig) -> str:
    return (
        f"warning: {count} of {num_images} images so far were smaller than a global crop ({config.crops.global_size} "
        "px) and enlarged: their crops are blurred. A smaller crop (crops.global-size) shows them as they are"
    )


def _diverged(step: int, count: int, metrics: dict[str, Tensor], files: list[Path], seed: int) -> str:
    terms = [name for name, value in metrics.items() if name.endswith("loss") and not torch.isfinite(value)]
    what = f"these are not finite: {', '.join(terms)}" if terms else "the losses are finite, a gradient is not"
    shown = ", ".join(map(str, files[:4]))
    return (
        f"{count} steps in a row were skipped, the last is step {step} (seed {seed}): {what}. Its images begin with "
        f"{shown}. A lower learning rate (optim.lr), a longer warm-up (optim.warmup-epochs) or float32 "
        "(efficiency.precision float32) most often helps; the last checkpoint is from before"
    )
