"""Crops of some images are slices of all tensors, parameters included, in the same memory."""

import torch

from selfpatch.config import CropsConfig
from selfpatch.data.augmentation.multi_crop import MultiCrop


def test_slices_share_memory_and_take_copies():
    multi_crop = MultiCrop(CropsConfig(global_size=8, local_size=4, num_local=3), color_in_worker=False)
    batch, other = multi_crop.allocate(5), multi_crop.allocate(2)
    for part in batch.tensors():
        part.zero_()
    for part in other.tensors():
        part.fill_(1)
    assert len(list(batch.tensors())) == 2 + 2 * 6
    batch.slice_images(1, 3).copy_(other)
    for part in batch.tensors():
        assert part.shape[1] == 5
        assert [bool(part[:, i].all()) for i in range(5)] == [False, True, True, False, False]
        assert [bool(part[:, i].any()) for i in range(5)] == [False, True, True, False, False]
    assert batch.slice_images(2, 4).num_images == 2
    assert torch.equal(batch.slice_images(2, 4).global_color.flip, batch.global_color.flip[:, 2:4])


def test_without_local_crops():
    crops = MultiCrop(CropsConfig(global_size=8, num_local=0)).allocate(4)
    assert crops.slice_images(0, 3).local_crops is None
    assert crops.num_images == 4
