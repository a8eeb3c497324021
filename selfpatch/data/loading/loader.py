"""Batches of crops, made by worker processes: the same bit for bit however many there are and wherever one starts."""

import math
import os
import shutil
import signal
import threading
import time
import warnings
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import cv2
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from selfpatch.data.augmentation.crops import Crops
from selfpatch.data.augmentation.multi_crop import MultiCrop
from selfpatch.data.image_folder import ImageFolder
from selfpatch.data.loading.sampler import Plan, sample_rng
from selfpatch.data.reading.decode import UnreadableImage
from selfpatch.errors import UserError

# Images a worker makes at a time: few, so that all workers share a large batch and little waits in shared memory.
_IMAGES_PER_TASK = 8
# Images tried for one place of a batch before the folder is given up.
_MAX_TRIES = 20
# How often the main process looks after its workers while it waits for images.
_CHECK_EVERY_S = 2


class Batch(NamedTuple):
    """The crops of one step, RGB, not normalised; on several ranks this rank's images."""

    step: int
    crops: Crops
    bad_images: list[tuple[Path, str]]  # what could not be read, and why; other images took their places
    num_upsampled: int  # images smaller than a global crop


def training_batches(
    images: ImageFolder,
    plan: Plan,
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

    Every rank gets its own `plan.batch_size / world_size` images of each batch. For an image that cannot be read
    another one is drawn by the random numbers of its place, so the crops still depend on seed and step alone.

    Args:
        num_workers: processes that read and crop; 0 does it in this one.
        pin_memory: put batches in page-locked memory, from which copies to a GPU run beside the computation.
        timeout_s: how long the next few images may take before their worker counts as hung.

    Raises:
        UserError: the ranks cannot share a batch equally, or the shared memory for the workers' crops is not there.
        UnreadableImage: while iterating, image after image cannot be read.
        RuntimeError: while iterating, a worker died or hung.
    """
    if plan.batch_size % world_size:
        raise UserError(
            f"a batch of {plan.batch_size} images cannot be shared equally by {world_size} processes; choose a "
            f"multiple of {world_size} (optim.batch-size)"
        )
    images_per_step = plan.batch_size // world_size
    # About two batches wait ready, over all workers together.
    prefetch = max(2, math.ceil(2 * images_per_step / _IMAGES_PER_TASK / num_workers)) if num_workers else 0
    desk = SharedCropBuffer(
        multi_crop,
        images_per_task=min(_IMAGES_PER_TASK, images_per_step),
        num_tasks=num_workers * prefetch + 1,  # that one is being copied
        shared=num_workers > 0,
    )
    results = _results(
        _Worker(images, plan.seed, multi_crop, desk.crops),
        _tasks(plan, range(first_step, stop_step), rank, world_size, desk),
        num_workers,
        prefetch=prefetch or None,
    )
    return _batches(results, images, multi_crop, images_per_step, desk, pin_memory, timeout_s)


class _Task(NamedTuple):
    """Some images of a step, which one worker makes in one go."""

    step: int
    epoch: int
    indices: list[int]
    place: int  # where their crops go, in images from the start of the shared memory


class _TaskResult(NamedTuple):
    """What a worker says when it has done a task; the crops are where they should be."""

    bad_images: list[tuple[Path, str]]
    num_upsampled: int


class SharedCropBuffer:
    """Tasks under way, and the memory in which workers leave their crops for the main process.

    A place is given out again once its crops have been copied into their batch. So memory is taken once, nothing but
    a few numbers goes through a queue, and the main process does one copy.
    """

    def __init__(self, multi_crop: MultiCrop, *, images_per_task: int, num_tasks: int, shared: bool):
        self.crops = multi_crop.allocate(images_per_task * num_tasks)
        if shared:
            _check_shared_memory(sum(part.nbytes for part in self.crops.tensors()))
            self.crops = self.crops.map(Tensor.share_memory_)
        self.in_flight: deque[_Task] = deque()  # in the order in which their results come back
        self._free = deque(range(0, images_per_task * num_tasks, images_per_task))

    def submit(self, step: int, epoch: int, indices: list[int]) -> _Task:
        self.in_flight.append(_Task(step, epoch, indices, self._free.popleft()))
        return self.in_flight[-1]

    def collect(self, batch: Crops, start: int) -> _Task:
        """Copy what the first task under way has made into a batch, from image `start` on; its place is free again."""
        task = self.in_flight.popleft()
        num_images = len(task.indices)
        batch.slice_images(start, start + num_images).copy_(
            self.crops.slice_images(task.place, task.place + num_images)
        )
        self._free.append(task.place)
        return task


def _check_shared_memory(num_bytes: int) -> None:
    """What other processes are about to take is not known."""
    if not os.path.isdir("/dev/shm"):
        return
    free = shutil.disk_usage("/dev/shm").free
    if free < num_bytes:
        raise UserError(
            f"the processes that read images share {num_bytes / 2**20:.0f} MB with the main process, and /dev/shm has "
            f"{free / 2**20:.0f} MB left; give a container more (docker run --shm-size), make the batch smaller "
            "(optim.batch-size), use fewer processes (efficiency.num-workers), or none, which needs no shared memory"
        )


class _Worker(Dataset):
    """What a worker knows: how a task becomes a part of a batch."""

    def __init__(self, images: ImageFolder, seed: int, multi_crop: MultiCrop, crops: Crops):
        self.images = images
        self.seed = seed
        self.multi_crop = multi_crop
        self.crops = crops

    def __getitem__(self, task: _Task) -> _TaskResult | UnreadableImage:
        bad_images: list[tuple[Path, str]] = []
        num_upsampled = 0
        try:
            for place, index in enumerate(task.indices, start=task.place):
                place_of_image = self.crops.slice_images(place, place + 1)
                num_upsampled += self._write(task.epoch, index, place_of_image, bad_images)
        except UnreadableImage as error:
            return error  # raised by the main process: the loader would wrap it in a worker's traceback
        return _TaskResult(bad_images, num_upsampled)

    def _write(self, epoch: int, index: int, place: Crops, bad_images: list[tuple[Path, str]]) -> bool:
        """Whether the image is smaller than a global crop."""
        rng = sample_rng(self.seed, epoch, index)
        for _ in range(_MAX_TRIES):
            try:
                image = self.images.read(index)
            except UnreadableImage as error:
                bad_images.append((self.images.path(index), str(error)))
                index = int(rng.integers(len(self.images)))
            else:
                self.multi_crop.write(image, rng, place)
                return self.multi_crop.is_smaller_than_crop(image)
        path, reason = bad_images[-1]
        raise UnreadableImage(
            f"{_MAX_TRIES} images in a row, drawn at random, cannot be read; the last was {path}: {reason}. See that "
            "the images are still there and readable; `selfpatch check` lists what is wrong with each"
        )


def _tasks(plan: Plan, steps: range, rank: int, world_size: int, desk: SharedCropBuffer) -> Iterator[_Task]:
    for step in steps:
        indices = plan.indices(step).reshape(world_size, -1)[rank].tolist()
        for i in range(0, len(indices), _IMAGES_PER_TASK):
            yield desk.submit(step, plan.epoch(step), indices[i : i + _IMAGES_PER_TASK])


def _results(
    dataset: _Worker, tasks: Iterator[_Task], num_workers: int, prefetch: int | None
) -> Iterator[_TaskResult | UnreadableImage]:
    """What the workers make of the tasks, in the order of the tasks."""
    handler_before = signal.getsignal(signal.SIGCHLD)
    with warnings.catch_warnings():
        # More workers than cores is the user's choice.
        warnings.filterwarnings("ignore", "This DataLoader will create", UserWarning)
        results = iter(
            DataLoader(
                dataset,
                batch_size=None,
                sampler=tasks,
                num_workers=num_workers,
                prefetch_factor=prefetch,
                timeout=_CHECK_EVERY_S if num_workers else 0,
                collate_fn=_no_collate,
                worker_init_fn=_start_worker,
                # Its own: the loader seeds workers from it, and torch's global random numbers belong to the model.
                generator=torch.Generator(),
            )
        )
    # torch now raises at once when a worker dies, wherever the main process is: in backward, or while it saves.
    # _next_result notices soon enough, when images are due.
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, handler_before)
    return results


def _batches(
    results: Iterator[_TaskResult | UnreadableImage],
    images: ImageFolder,
    multi_crop: MultiCrop,
    images_per_step: int,
    desk: SharedCropBuffer,
    pin_memory: bool,
    timeout_s: float,
) -> Iterator[Batch]:
    try:
        while True:
            crops = multi_crop.allocate(images_per_step, pin_memory=pin_memory)
            bad_images: list[tuple[Path, str]] = []
            step = num_upsampled = num_images = 0
            while num_images < images_per_step:
                made = _next_result(results, images, desk, timeout_s)
                if made is None:
                    return
                if isinstance(made, UnreadableImage):
                    raise made
                task = desk.collect(crops, num_images)
                step = task.step
                num_images += len(task.indices)
                bad_images += made.bad_images
                num_upsampled += made.num_upsampled
            yield Batch(step, crops, bad_images, num_upsampled)
    finally:
        del results  # ends the workers now, even if a traceback keeps this frame


def _next_result(
    results: Iterator[_TaskResult | UnreadableImage], images: ImageFolder, desk: SharedCropBuffer, timeout_s: float
) -> _TaskResult | UnreadableImage | None:
    """The next result, None after the last one. Dead workers are noticed within seconds, hung ones after timeout_s."""
    started = time.monotonic()
    while True:
        try:
            return next(results, None)
        except RuntimeError as error:
            # The loader says no more than this of what happened; errors of our own code are passed on as they are.
            hung = str(error).startswith("DataLoader timed out")
            if hung and time.monotonic() - started < timeout_s:
                continue
            if not hung and not str(error).startswith("DataLoader worker"):
                raise
            what = f"has given no images for {timeout_s:g} s" if hung else f"died ({error})"
            late = desk.in_flight[0]
            raise RuntimeError(
                f"a process that reads images {what}. Images of step {late.step} were due, the first of them "
                f"{images.path(late.indices[0])}. See whether the disk answers, whether memory or /dev/shm is full and "
                "whether something killed it; then start the same command again, which goes on from the last "
                "checkpoint. Fewer processes (efficiency.num-workers) need less memory"
            ) from error


def _no_collate(made: _TaskResult | UnreadableImage) -> _TaskResult | UnreadableImage:
    return made


def _start_worker(_worker: int) -> None:
    cv2.setNumThreads(0)
    # Terminals, `timeout` and SLURM signal all processes of a job at once. The main process decides what a signal
    # means, finishes its step and saves; until then it needs its workers.
    for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    # SIGTERM is also how the main process stops a worker that does not answer, so one from there is obeyed.
    if hasattr(signal, "sigwaitinfo"):  # not on macOS
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        threading.Thread(target=_exit_on_parent_sigterm, daemon=True).start()


def _exit_on_parent_sigterm() -> None:
    while signal.sigwaitinfo([signal.SIGTERM]).si_pid != os.getppid():
        pass
    os._exit(0)
