"""Memory and time of a run, and the largest batch that fits, from steps of the model itself."""

import time
import weakref
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from selfpatch.config import PretrainConfig, rows_columns
from selfpatch.errors import UserError
from selfpatch.pretraining.student_teacher import StudentTeacher
from selfpatch.pretraining.views import Views
from selfpatch.training.precision import autocast_for

# What stays free: kernels' own buffers, fragments, data workers, everybody else.
MARGIN = 0.2
# DINO's and the authors' batch: schedules and temperatures beyond it have not been tried by anybody.
LARGEST_BATCH = 1024


# Images per step for which memory is counted; between and beyond them it grows by a straight line.
PROBE_BATCH_SIZES = (32, 64)
# Images in the steps that are timed: these, then up to so many.
TIMED_BATCH_SIZE, LARGEST_TIMED_BATCH = 2, 32


class Need(NamedTuple):
    """Of a run, with images on the device at once."""

    fixed_bytes: float  # weights, optimizer state, and what does not grow with the batch
    bytes_per_image: float

    def bytes(self, num_images: float) -> float:
        return self.fixed_bytes + num_images * self.bytes_per_image


class StepTime(NamedTuple):
    """Seconds of a step, whatever its images, and for each of them."""

    fixed: float
    per_image: float

    def seconds(self, num_images: float) -> float:
        return self.fixed + num_images * self.per_image


def estimate_memory(student_teacher: StudentTeacher, config: PretrainConfig, device: torch.device) -> Need:
    """The tensors alive at the peak of a step, counted while it runs on tensors without data, so in no memory.

    Buffers inside of kernels and what allocators waste are not seen; without stochastic depth, so a little too much.
    """
    student_teacher.eval()
    peaks = []
    for num_images in PROBE_BATCH_SIZES:
        with FakeTensorMode(allow_non_fake_inputs=True), _LiveBytes(student_teacher) as live:
            _step(student_teacher, config, num_images, device)
        peaks.append(live.peak)
    per_image = (peaks[1] - peaks[0]) / (PROBE_BATCH_SIZES[1] - PROBE_BATCH_SIZES[0])
    moments = 2 * sum(p.nbytes for p in student_teacher.parameters() if p.requires_grad)
    return Need(peaks[0] - PROBE_BATCH_SIZES[0] * per_image + moments, per_image)


def time_step(
    student_teacher: StudentTeacher, config: PretrainConfig, device: torch.device, *, num_images: int
) -> StepTime:
    """From steps on made-up images, of which nothing stays: of two images, then of what a second has time for.

    Small networks spend most of a step of two images on what does not grow with them.

    Args:
        num_images: on this device at once in the run; no step here has more, but for the two that are always timed.
    """
    student_teacher.train()

    def seconds_of(count: int) -> float:
        start = time.perf_counter()
        _step(student_teacher, config, count, device)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - start

    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        seconds_of(TIMED_BATCH_SIZE)  # warms up
        small = seconds_of(TIMED_BATCH_SIZE)
        count = min(num_images, LARGEST_TIMED_BATCH, int(TIMED_BATCH_SIZE / small))
        if count <= 2 * TIMED_BATCH_SIZE:
            return StepTime(0.0, small / TIMED_BATCH_SIZE)
        per_image = max(seconds_of(count) - small, 0.0) / (count - TIMED_BATCH_SIZE)
    return StepTime(max(small - TIMED_BATCH_SIZE * per_image, 0.0), per_image)


def largest_batch(need: Need, available_bytes: float, *, num_images: int, accumulate: int = 1) -> int:
    """The largest power of two (times `accumulate`) that leaves MARGIN of the memory free, and four batches per epoch.

    Raises:
        UserError: not a single image fits.
    """
    fits = (available_bytes * (1 - MARGIN) - need.fixed_bytes) / need.bytes_per_image
    if fits < 1:
        raise UserError(
            f"not one image per step fits into memory: {available_bytes / 2**30:.1f} GB are available, of which "
            f"{1 - MARGIN:.0%} may be used, and {need.bytes(1) / 2**30:.1f} GB are needed. Choose a smaller backbone "
            "(backbone.name), smaller crops (crops.global-size) or efficiency.activation-checkpointing full"
        )
    at_most = min(fits * accumulate, LARGEST_BATCH, max(num_images / 4, accumulate))
    batch_size = accumulate
    while 2 * batch_size <= at_most:
        batch_size *= 2
    return batch_size


def _step(student_teacher: StudentTeacher, config: PretrainConfig, num_images: int, device: torch.device) -> None:
    crops, num_channels = config.crops, student_teacher.student.backbone.num_channels
    global_crops, local_crops = (
        torch.randn(count, num_images, num_channels, *rows_columns(size), device=device) if count else None
        for count, size in ((crops.num_global, crops.global_size), (crops.num_local, crops.local_size))
    )
    assert global_crops is not None
    recolored_crops = torch.randn_like(global_crops) if student_teacher.needs_recolored else None
    # Every crop the whole of its image: all patches count.
    boxes = [
        torch.tensor([0.0, 0.0, 1.0, 1.0], device=device).expand(count, num_images, 4)
        if student_teacher.needs_boxes and count
        else None
        for count in (crops.num_global, crops.num_local)
    ]
    views = Views(global_crops, local_crops, None, recolored_crops, *boxes)
    with autocast_for(config.efficiency.precision, device)():
        loss, _ = student_teacher(views, 0)
    loss.backward()
    student_teacher.zero_grad(set_to_none=True)
    student_teacher.discard()


class _LiveBytes(TorchDispatchMode):
    """Counts the bytes of all tensors alive, each storage once, those of the model from the start."""

    def __init__(self, student_teacher: StudentTeacher):
        super().__init__()
        self.now = self.peak = 0
        self._known = WeakIdKeyDictionary()
        for tensor in [*student_teacher.parameters(), *student_teacher.buffers()]:
            self._add(tensor)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        results = func(*args, **(kwargs or {}))
        for result in tree_leaves(results):
            if isinstance(result, Tensor):
                self._add(result)
        return results

    def _add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage in self._known:
            return
        size = storage.nbytes()
        self._known[storage] = size
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._free, size)

    def _free(self, size: int) -> None:
        self.now -= size
