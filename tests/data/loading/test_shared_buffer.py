"""Slots come back in the order in which they were submitted, and none is handed out while it is in flight."""

import os
import shutil
from types import SimpleNamespace

import numpy as np
import pytest

from selfpatch.config import CropsConfig
from selfpatch.data.augmentation.multi_crop import MultiCrop
from selfpatch.data.loading.shared_buffer import SharedCropBuffer

SMALL = MultiCrop(CropsConfig(global_size=32, local_size=16, num_local=3), color_in_worker=False)


def fill(buffer: SharedCropBuffer, slot: int, values: list[int]) -> None:
    for position, value in enumerate(values):
        for part in buffer.image(slot, position).tensors():
            part.fill_(value)


def test_slots_are_collected_in_the_order_of_submission():
    """Whatever the order in which they were filled, and with fewer images in the last one."""
    buffer = SharedCropBuffer(SMALL, num_slots=3, images_per_slot=2, shared=False)
    first, second, third = (buffer.submit() for _ in range(3))
    fill(buffer, third, [5])
    fill(buffer, first, [1, 2])
    fill(buffer, second, [3, 4])
    batch = SMALL.allocate(5)
    buffer.collect(batch.slice_images(0, 2))
    buffer.collect(batch.slice_images(2, 4))
    buffer.collect(batch.slice_images(4, 5))
    assert batch.global_crops[0, :, 0, 0, 0].tolist() == [1, 2, 3, 4, 5]
    assert batch.local_crops[2, :, 2, -1, -1].tolist() == [1, 2, 3, 4, 5]
    assert batch.local_color.blur_sigma[1].tolist() == [1, 2, 3, 4, 5]
    assert batch.global_color.jitter[0, :, 3].tolist() == [1, 2, 3, 4, 5]


def test_a_slot_in_flight_is_not_handed_out():
    """Over many turns, with as many or as few in flight as it happens."""
    rng, numbers = np.random.default_rng(0), iter(range(1000))
    buffer = SharedCropBuffer(SMALL, num_slots=4, images_per_slot=1, shared=False)
    in_flight, out = [], SMALL.allocate(1)
    for _ in range(300):
        if buffer.num_free and rng.random() < 0.6:
            slot, number = buffer.submit(), next(numbers) % 100
            assert slot not in [other for other, _ in in_flight]
            fill(buffer, slot, [number])
            in_flight.append((slot, number))
        elif in_flight:
            buffer.collect(out)
            assert out.global_crops.unique().tolist() == [in_flight.pop(0)[1]]
        assert buffer.num_free == 4 - len(in_flight)
    while buffer.num_free:
        buffer.submit()
    with pytest.raises(IndexError):
        buffer.submit()


def test_an_image_has_its_own_part_of_a_slot():
    buffer = SharedCropBuffer(SMALL, num_slots=2, images_per_slot=3, shared=True)
    addresses = {buffer.image(slot, position).global_crops.data_ptr() for slot in (0, 1) for position in (0, 1, 2)}
    assert len(addresses) == 6
    assert all(part.is_shared() for part in buffer.image(0, 0).tensors())


@pytest.mark.parametrize(
    ("num_slots", "free", "words"),
    [
        # Of 8 images: 2 * 8 * 3 * 32 * 32 bytes of global crops, 3 * 8 * 3 * 16 * 16 of local ones, in pages of 4 kB,
        # and twelve tensors of parameters, a page each.
        (1, 100 * 1024, "share 116 kB with the main process, and /dev/shm has 100 kB left"),
        (1, 0, "share 116 kB with the main process, and /dev/shm has 0 kB left"),
        (40, 256 * 1024, "share 2.6 MB with the main process, and /dev/shm has 256 kB left"),
        (400, 64 * 2**20 - 1, None),
        (1200, 64 * 2**20 - 1, "share 79 MB with the main process, and /dev/shm has 64 MB left"),
    ],
)
def test_too_little_shared_memory(num_slots, free, words, monkeypatch):
    """Refused before anything runs, in units that show the difference."""
    monkeypatch.setattr(os.path, "isdir", lambda _: True)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    if words is None:
        SharedCropBuffer(SMALL, num_slots=num_slots, images_per_slot=8, shared=True)
        return
    with pytest.raises(ValueError, match=rf"{words}; .*--shm-size.*num-workers"):
        SharedCropBuffer(SMALL, num_slots=num_slots, images_per_slot=8, shared=True)
    SharedCropBuffer(SMALL, num_slots=1, images_per_slot=8, shared=False)
