"""Batches of crops, made by worker processes: the same bit for bit however many there are and wherever one starts."""

import math
import os
import signal
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from selfpatch.data.decode import UnreadableImage
from selfpatch.data.image_folder import ImageFolder
from selfpatch.data.multi_crop import Crops, MultiCrop
from selfpatch.data.plan import Plan, sample_rng

# Images a worker makes at a time: few, so that all workers share a large batch and little waits in shared memory.
_IMAGES_PER_TASK = 8
# Images tried for one place of a batch before the folder is given up.
_MAX_TRIES = 20
# How often the main process looks after its workers while it waits for images.
_CHECK_EVERY_S = 2


class Batch(NamedTuple):
    """The crops of one step, RGB, not normalised; on several ranks this rank's images."""

    step: int
    global_crops: UInt8[Tensor, "V B 3 H W"]
    local_crops: UInt8[Tensor, "U B 3 R S"] | None
    bad_images: list[tuple[Path, str]]  # what could not be read, and why; other images took their places
    num_upscaled: int  # images smaller than a global crop
    # What `device_light.relight_batch` still has to do to them, on the CPU; None: nothing.
    global_lights: Float[Tensor, "V B F"] | None = None
    local_lights: Float[Tensor, "U B F"] | None = None


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
        ValueError: the ranks cannot share a batch equally.
        UnreadableImage: while iterating, image after image cannot be read.
        RuntimeError: while iterating, a worker died or hung.
    """
    if plan.batch_size % world_size:
        raise ValueError(
            f"a batch of {plan.batch_size} images cannot be shared equally by {world_size} processes; choose a "
            f"multiple of {world_size} (optim.batch-size)"
        )
    steps = range(first_step, stop_step)
    tasks_per_step = math.ceil(plan.batch_size // world_size / _IMAGES_PER_TASK)
    given_out: deque[_Task] = deque()  # in the order in which their results come back
    results = _results(
        _Tasks(images, plan.seed, multi_crop),
        _tasks(plan, steps, rank, world_size, given_out),
        num_workers,
        # About two batches wait ready, over all workers together.
        prefetch=max(2, math.ceil(2 * tasks_per_step / num_workers)) if num_workers else None,
    )
    return _batches(results, images, tasks_per_step, given_out, pin_memory, timeout_s)


class _Task(NamedTuple):
    """Some images of a step, which one worker makes in one go."""

    step: int
    epoch: int
    indices: list[int]


class _Tasks(Dataset):
    """What a worker knows: how a task becomes a part of a batch."""

    def __init__(self, images: ImageFolder, seed: int, multi_crop: MultiCrop):
        self.images = images
        self.seed = seed
        self.multi_crop = multi_crop

    def __getitem__(self, task: _Task) -> Batch | UnreadableImage:
        bad_images: list[tuple[Path, str]] = []
        try:
            crops = [self._crops(task.epoch, index, bad_images) for index in task.indices]
        except UnreadableImage as error:
            return error  # raised by the main process: the loader would wrap it in a worker's traceback
        return Batch(
            task.step,
            torch.stack([one.global_crops for one in crops], dim=1),
            _joined(torch.stack, [one.local_crops for one in crops]),
            bad_images,
            sum(one.upscaled for one in crops),
            _joined(torch.stack, [one.global_lights for one in crops]),
            _joined(torch.stack, [one.local_lights for one in crops]),
        )

    def _crops(self, epoch: int, index: int, bad_images: list[tuple[Path, str]]) -> Crops:
        rng = sample_rng(self.seed, epoch, index)
        for _ in range(_MAX_TRIES):
            try:
                return self.multi_crop(self.images.read(index), rng)
            except UnreadableImage as error:
                bad_images.append((self.images.path(index), str(error)))
                index = int(rng.integers(len(self.images)))
        path, reason = bad_images[-1]
        raise UnreadableImage(
            f"{_MAX_TRIES} images in a row, drawn at random, cannot be read; the last was {path}: {reason}. See that "
            "the images are still there and readable; `selfpatch check` lists what is wrong with each"
        )


def _tasks(plan: Plan, steps: range, rank: int, world_size: int, given_out: deque[_Task]) -> Iterator[_Task]:
    for step in steps:
        indices = plan.indices(step).reshape(world_size, -1)[rank].tolist()
        for i in range(0, len(indices), _IMAGES_PER_TASK):
            given_out.append(_Task(step, plan.epoch(step), indices[i : i + _IMAGES_PER_TASK]))
            yield given_out[-1]


def _results(
    dataset: _Tasks, tasks: Iterator[_Task], num_workers: int, prefetch: int | None
) -> Iterator[Batch | UnreadableImage]:
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
                collate_fn=_as_it_is,
                worker_init_fn=_start_worker,
                # Its own: the loader seeds workers from it, and torch's global random numbers belong to the model.
                generator=torch.Generator(),
            )
        )
    # torch now raises at once when a worker dies, wherever the main process is: in backward, or while it saves. _wait
    # notices soon enough, when images are due.
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, handler_before)
    return results


def _batches(
    results: Iterator[Batch | UnreadableImage],
    images: ImageFolder,
    tasks_per_step: int,
    given_out: deque[_Task],
    pin_memory: bool,
    timeout_s: float,
) -> Iterator[Batch]:
    parts: list[Batch] = []
    try:
        while part := _wait(results, images, given_out, timeout_s):
            if isinstance(part, UnreadableImage):
                raise part
            given_out.popleft()
            parts.append(part)
            if len(parts) == tasks_per_step:
                yield _join(parts, pin_memory)
                parts = []
    finally:
        del results  # ends the workers now, even if a traceback keeps this frame


def _wait(
    results: Iterator[Batch | UnreadableImage], images: ImageFolder, given_out: deque[_Task], timeout_s: float
) -> Batch | UnreadableImage | None:
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
            late = given_out[0]
            raise RuntimeError(
                f"a process that reads images {what}. Images of step {late.step} were due, the first of them "
                f"{images.path(late.indices[0])}. See whether the disk answers, whether memory or /dev/shm is full and "
                "whether something killed it; then start the same command again, which goes on from the last "
                "checkpoint. Fewer processes (efficiency.num-workers) need less memory"
            ) from error


def _join(parts: list[Batch], pin_memory: bool) -> Batch:
    return Batch(
        parts[0].step,
        _cat([part.global_crops for part in parts], pin_memory),
        None if parts[0].local_crops is None else _cat([part.local_crops for part in parts], pin_memory),
        [bad for part in parts for bad in part.bad_images],
        sum(part.num_upscaled for part in parts),
        _joined(torch.cat, [part.global_lights for part in parts]),
        _joined(torch.cat, [part.local_lights for part in parts]),
    )


def _joined(join: Callable[..., Tensor], tensors: list[Any]) -> Tensor | None:
    """Along the axis of images; all of them are there, or none."""
    return None if tensors[0] is None else join(tensors, dim=1)


def _cat(crops: list[UInt8[Tensor, "V _ 3 H W"]], pin_memory: bool) -> UInt8[Tensor, "V B 3 H W"]:
    views, _, *rest = crops[0].shape
    out = torch.empty(views, sum(part.shape[1] for part in crops), *rest, dtype=torch.uint8, pin_memory=pin_memory)
    return torch.cat(crops, dim=1, out=out)


def _as_it_is(part: Batch | UnreadableImage) -> Batch | UnreadableImage:
    return part


def _start_worker(_worker: int) -> None:
    cv2.setNumThreads(0)
    # Terminals, `timeout` and SLURM signal all processes of a job at once. The main process decides what a signal
    # means, finishes its step and saves; until then it needs its workers.
    for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    # SIGTERM is also how the main process stops a worker that does not answer, so one from there is obeyed.
    if hasattr(signal, "sigwaitinfo"):  # not on macOS
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        threading.Thread(target=_exit_when_parent_says, daemon=True).start()


def _exit_when_parent_says() -> None:
    while signal.sigwaitinfo([signal.SIGTERM]).si_pid != os.getppid():
        pass
    os._exit(0)
