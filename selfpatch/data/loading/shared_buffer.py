"""Shared memory in which workers leave crops for the main process."""

import mmap
import os
import shutil
from collections import deque

from torch import Tensor

from selfpatch.data.augmentation.crops import Crops
from selfpatch.data.augmentation.multi_crop import MultiCrop
from selfpatch.errors import UserError


class SharedCropBuffer:
    """Fixed pool of shared-memory slots. A worker fills a slot, the main process copies it out, the slot is reused.

    Slots are collected in the order in which they were submitted. Memory is taken once, and only the number of a slot
    goes to the worker.

    Args:
        images_per_slot: images whose crops fit into a slot.
        shared: False for a buffer within one process.

    Raises:
        UserError: the shared memory is not there. A worker that wrote beyond it would die of a bus error.
    """

    def __init__(self, multi_crop: MultiCrop, *, num_slots: int, images_per_slot: int, shared: bool):
        self._images_per_slot = images_per_slot
        self._crops = multi_crop.allocate(num_slots * images_per_slot)
        if shared:
            _check_shared_memory(sum(_whole_pages(part.nbytes) for part in self._crops.tensors()))
            self._crops = self._crops.map(Tensor.share_memory_)
        self._free = deque(range(num_slots))
        self._in_flight: deque[int] = deque()

    @property
    def num_free(self) -> int:
        return len(self._free)

    def submit(self) -> int:
        """Take a free slot, for a worker to fill; there must be one."""
        slot = self._free.popleft()
        self._in_flight.append(slot)
        return slot

    def image(self, slot: int, position: int) -> Crops:
        """The memory of one image's crops within a slot."""
        index = slot * self._images_per_slot + position
        return self._crops.slice_images(index, index + 1)

    def collect(self, out: Crops) -> None:
        """Copy the first crops of the oldest slot in flight to `out`, and free the slot."""
        slot = self._in_flight.popleft()
        start = slot * self._images_per_slot
        out.copy_(self._crops.slice_images(start, start + out.num_images))
        self._free.append(slot)


def _whole_pages(num_bytes: int) -> int:
    return -(-num_bytes // mmap.PAGESIZE) * mmap.PAGESIZE


def _check_shared_memory(num_bytes: int) -> None:
    """Refuse what /dev/shm has no room for now; what other processes are about to take is not known."""
    if not os.path.isdir("/dev/shm"):
        return
    free = shutil.disk_usage("/dev/shm").free
    if free < num_bytes:
        raise UserError(
            f"the processes that read images share {_size(num_bytes)} with the main process, and /dev/shm has "
            f"{_size(free)} left; give a container more (docker run --shm-size), make the batch smaller "
            "(optim.batch-size), use fewer processes (efficiency.num-workers), or none, which needs no shared memory"
        )


def _size(num_bytes: int) -> str:
    """In kB below 1 MB, with one decimal below 10 MB."""
    if num_bytes < 2**20:
        return f"{num_bytes / 2**10:.0f} kB"
    return f"{num_bytes / 2**20:.{1 if num_bytes < 10 * 2**20 else 0}f} MB"
