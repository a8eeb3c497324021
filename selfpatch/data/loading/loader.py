"""Batches of crops, made by worker processes: the same bit for bit however many there are and wherever one starts."""

import functools
import math
from collections import deque
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from selfpatch.data.augmentation.crops import Crops
from selfpatch.data.augmentation.geometry import Image
from selfpatch.data.augmentation.multi_crop import MultiCrop
from selfpatch.data.loading.ordered_workers import MAX_TASKS_PER_WORKER, OrderedWorkers, WorkerError
from selfpatch.data.loading.sampler import EpochSampler, sample_rng
from selfpatch.data.loading.shared_buffer import SharedCropBuffer
from selfpatch.data.reading.decode import UnreadableImage
from selfpatch.data.source import ImageSource
from selfpatch.errors import RunFailedError, UserError

# Images per task: few, so that all workers share a large batch and little waits in shared memory.
_IMAGES_PER_TASK = 8
# Images tried for one place of a batch before the folder is given up.
_MAX_TRIES = 20


class Batch(NamedTuple):
    """The crops of one step, not normalized; on several ranks those of this rank's images."""

    step: int
    crops: Crops
    bad_images: list[tuple[str, str]]  # names of unreadable ones, and the reasons; other images took their places
    num_upsampled: int  # images smaller than a global crop


def training_batches(
    source: ImageSource,
    sampler: EpochSampler,
    multi_crop: MultiCrop,
    *,
    first_step: int,
    stop_step: int,
    num_workers: int,
    rank: int = 0,
    world_size: int = 1,
    pin_memory: bool = False,
    timeout_s: float = 300,
) -> Iterator[Batch]:
    """The batches of the steps first_step, ..., stop_step - 1.

    Every rank gets its own `sampler.batch_size / world_size` images of each batch. An image that cannot be read is
    replaced by another one, drawn by the random numbers of its place, so the crops still depend on seed and step alone.

    Args:
        num_workers: processes that read and crop; 0 does it in this one.
        pin_memory: put batches in page-locked memory, from which copies to a GPU run beside the computation.
        timeout_s: how long the next few images may take before their worker counts as hung.

    Raises:
        UserError: the ranks cannot share a batch equally, or the shared memory for the workers' crops is not there.
        UnreadableImage: while iterating, image after image cannot be read.
        RunFailedError: while iterating, a worker died or hung.
    """
    if sampler.batch_size % world_size:
        raise UserError(
            f"a batch of {sampler.batch_size} images cannot be shared equally by {world_size} processes; choose a "
            f"multiple of {world_size} (optim.batch-size)"
        )
    images_per_step = sampler.batch_size // world_size
    buffer = SharedCropBuffer(
        multi_crop,
        num_slots=_num_tasks_ahead(images_per_step, num_workers),
        images_per_slot=min(_IMAGES_PER_TASK, images_per_step),
        shared=num_workers > 0,
    )
    make_crops = _MakeCrops(source, sampler.seed, multi_crop, buffer)
    workers = OrderedWorkers(make_crops, num_workers, timeout_s=timeout_s)
    steps = range(first_step, stop_step)
    tasks = _tasks(sampler, steps, rank, world_size)
    allocate = functools.partial(multi_crop.allocate, images_per_step, pin_memory=pin_memory)
    return _batches(steps, tasks, workers, buffer, allocate, source)


def _num_tasks_ahead(images_per_step: int, num_workers: int) -> int:
    """About two batches, over all workers together."""
    if num_workers == 0:
        return 1
    per_worker = math.ceil(2 * images_per_step / _IMAGES_PER_TASK / num_workers)
    return num_workers * min(max(2, per_worker), MAX_TASKS_PER_WORKER)


class _Task(NamedTuple):
    """Some images of a step, whose crops one worker makes in one go."""

    step: int
    epoch: int
    indices: list[int]


class _TaskResult(NamedTuple):
    """Besides the crops, which are in their slot."""

    bad_images: list[tuple[str, str]]
    num_upsampled: int


def _tasks(sampler: EpochSampler, steps: range, rank: int, world_size: int) -> Iterator[_Task]:
    for step in steps:
        indices = sampler.indices(step).reshape(world_size, -1)[rank].tolist()
        for i in range(0, len(indices), _IMAGES_PER_TASK):
            yield _Task(step, sampler.epoch(step), indices[i : i + _IMAGES_PER_TASK])


def _batches(
    steps: range,
    tasks: Iterator[_Task],
    workers: "OrderedWorkers[tuple[_Task, int], _TaskResult]",
    buffer: SharedCropBuffer,
    allocate: Callable[[], Crops],
    source: ImageSource,
) -> Iterator[Batch]:
    pending: deque[_Task] = deque()

    def fill_slots() -> None:
        while buffer.num_free and (task := next(tasks, None)) is not None:
            workers.submit((task, buffer.submit()))
            pending.append(task)

    with workers:
        fill_slots()
        for step in steps:
            crops = allocate()
            bad_images: list[tuple[str, str]] = []
            num_upsampled = num_done = 0
            while num_done < crops.num_images:
                task = pending.popleft()
                result = _next_result(workers, task, source)
                buffer.collect(crops.slice_images(num_done, num_done + len(task.indices)))
                fill_slots()
                num_done += len(task.indices)
                bad_images += result.bad_images
                num_upsampled += result.num_upsampled
            yield Batch(step, crops, bad_images, num_upsampled)


def _next_result(
    workers: "OrderedWorkers[tuple[_Task, int], _TaskResult]", task: _Task, source: ImageSource
) -> _TaskResult:
    """The result of `task`, the oldest in flight."""
    try:
        return workers.next_result()
    except WorkerError as error:
        raise RunFailedError(
            f"of the processes that read images, {error}. Images of step {task.step} were due, the first of them "
            f"{source.name(task.indices[0])}. See whether the disk answers, whether memory or /dev/shm is full and "
            "whether something stopped or killed it; then start the same command again, which goes on from the last "
            "checkpoint. Fewer processes (efficiency.num-workers) need less memory"
        ) from error


class _MakeCrops:
    """The work of a worker: read the images of a task and write their crops to its slot."""

    def __init__(self, source: ImageSource, seed: int, multi_crop: MultiCrop, buffer: SharedCropBuffer):
        self._source, self._seed, self._multi_crop, self._buffer = source, seed, multi_crop, buffer

    def __call__(self, task_and_slot: tuple[_Task, int]) -> _TaskResult:
        task, slot = task_and_slot
        bad_images: list[tuple[str, str]] = []
        num_upsampled = 0
        for position, index in enumerate(task.indices):
            rng = sample_rng(self._seed, task.epoch, index)
            image = self._read(index, rng, bad_images)
            self._multi_crop.write(image, rng, self._buffer.image(slot, position))
            num_upsampled += self._multi_crop.is_smaller_than_crop(image)
        return _TaskResult(bad_images, num_upsampled)

    def _read(self, index: int, rng: np.random.Generator, bad_images: list[tuple[str, str]]) -> Image:
        """The image, or one drawn by `rng` in the place of those that cannot be read, which go to `bad_images`."""
        for _ in range(_MAX_TRIES):
            try:
                return self._source.read(index)
            except UnreadableImage as error:
                bad_images.append((self._source.name(index), str(error)))
                index = int(rng.integers(len(self._source)))
        name, reason = bad_images[-1]
        raise UnreadableImage(
            f"{_MAX_TRIES} images in a row, drawn at random, cannot be read; the last was {name}: {reason}. See that "
            "the images are still there and readable; `selfpatch check` lists what is wrong with each"
        )
