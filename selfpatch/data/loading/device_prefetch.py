"""Crops are on the GPU when their step begins: copied while the step before is computed."""

from collections.abc import Iterator

import torch
from torch import Tensor

from selfpatch.data.loading.loader import Batch


def prefetch_to_device(batches: Iterator[Batch], device: torch.device) -> Iterator[Batch]:
    """Copy the crops of every batch to a GPU, one batch ahead of the one that is yielded; other devices need no copy.

    Copies run on a stream of their own; from page-locked memory they run beside the computation. Color parameters stay
    on the CPU, where they are read.
    """
    if device.type != "cuda":
        yield from batches
        return
    computing, copying = torch.cuda.current_stream(device), torch.cuda.Stream(device)

    def copied(batch: Batch | None) -> Batch | None:
        if batch is None:
            return None
        with torch.cuda.stream(copying):
            moved = {
                name: part.to(device, non_blocking=True)
                for name, part in batch.crops._asdict().items()
                if isinstance(part, Tensor)
            }
            return batch._replace(crops=batch.crops._replace(**moved))

    ahead = copied(next(batches, None))
    while ahead is not None:
        batch = ahead
        computing.wait_stream(copying)  # by now that is the copy of this batch alone
        for part in batch.crops.tensors():
            if part.is_cuda:
                part.record_stream(computing)  # its memory is given back when the step is through with it
        ahead = copied(next(batches, None))
        yield batch
