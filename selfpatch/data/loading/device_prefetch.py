"""Crops are on the GPU when their step begins: copied while the step before is computed."""

from collections.abc import Iterator

import torch

from selfpatch.data.augmentation.multi_crop import Crops
from selfpatch.data.loading.loader import Batch


def prefetch_to_device(batches: Iterator[Batch], device: torch.device) -> Iterator[Batch]:
    """The same batches, their crops on the device if it is a GPU; batches in page-locked memory are not waited for.

    Copies run on a stream of their own, one batch ahead of the one that is given out. What is to be done to the light
    of crops stays on the CPU, where it is read.
    """
    if device.type != "cuda":
        yield from batches
        return
    computing, copying = torch.cuda.current_stream(device), torch.cuda.Stream(device)

    def copied(batch: Batch | None) -> Batch | None:
        if batch is None:
            return None
        with torch.cuda.stream(copying):
            global_crops, local_crops, *lights = batch.crops
            global_crops = global_crops.to(device, non_blocking=True)
            local_crops = None if local_crops is None else local_crops.to(device, non_blocking=True)
            return batch._replace(crops=Crops(global_crops, local_crops, *lights))

    ahead = copied(next(batches, None))
    while ahead is not None:
        batch = ahead
        computing.wait_stream(copying)  # by now that is the copy of this batch alone
        for part in batch.crops:
            if part is not None and part.is_cuda:
                part.record_stream(computing)  # its memory is given back when the step is through with it
        ahead = copied(next(batches, None))
        yield batch
