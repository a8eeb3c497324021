"""The task that the training loop calls at every step, and the batches that it is given."""

from collections.abc import Callable, Iterator

import torch

from selfpatch.commands.run_setup.hardware import augment_on_device, num_workers
from selfpatch.commands.run_setup.resource_estimate import data_wait_hint
from selfpatch.config import PretrainConfig
from selfpatch.data.augmentation.multi_crop import MultiCrop
from selfpatch.data.image_files import ImageFiles
from selfpatch.data.loading.loader import Batch, training_batches
from selfpatch.data.loading.sampler import EpochSampler
from selfpatch.distributed import rank, world_size
from selfpatch.pretraining.parallel import OneProcess
from selfpatch.pretraining.train_state import TrainState
from selfpatch.pretraining.train_step import PretrainTask, Schedules


def task_and_batches(
    config: PretrainConfig,
    source: ImageFiles,
    state: TrainState,
    schedules: Schedules,
    sampler: EpochSampler,
    model: OneProcess,
    device: torch.device,
    *,
    steps: range,
    record_bad_images: Callable[[list[tuple[str, str]]], int],
) -> tuple[PretrainTask, Iterator[Batch]]:
    """The task of a run, and the batches of these steps, for this rank.

    Args:
        record_bad_images: given the unreadable images of a step; returns how many there have been so far.
    """
    task = PretrainTask(
        state,
        config,
        schedules=schedules,
        sampler=sampler,
        device=device,
        record_bad_images=record_bad_images,
        image_name=source.name,
        data_wait_hint=data_wait_hint(config, device),
        model=model,
    )
    batches = training_batches(
        source,
        sampler,
        MultiCrop(
            config.crops,
            color_in_worker=not augment_on_device(config.efficiency.color_augmentation, device, source.pixels),
            recolor=state.student_teacher.needs_recolored,
            boxes=state.student_teacher.needs_boxes,
            pixels=source.pixels,
        ),
        first_step=steps.start,
        stop_step=steps.stop,
        num_workers=num_workers(config.efficiency.num_workers),
        rank=rank(),
        world_size=world_size(),
        pin_memory=device.type == "cuda",
    )
    return task, batches
