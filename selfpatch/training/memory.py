"""Memory that a run has taken, and memory that there is."""

import contextlib
import os
import resource
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from selfpatch.errors import RunFailedError


def peak_memory_mb(device: torch.device) -> float:
    """Largest so far: allocated on a GPU, or resident in the main process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def out_of_memory(error: BaseException) -> bool:
    """True for the errors by which Python and torch say that there is no memory left, of the host or of a GPU."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
    )


@contextlib.contextmanager
def memory_advice(device: torch.device) -> Iterator[None]:
    """Say of memory that runs out inside how much was taken, and what needs less.

    Raises:
        RunFailedError: in place of the allocator's error.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        on_gpu = isinstance(error, torch.OutOfMemoryError)
        where = "the GPU" if on_gpu else "this machine"
        data = "" if on_gpu else ", fewer processes that read images (--efficiency.num-workers)"
        raise RunFailedError(
            f"out of memory on {where}: this process had at most {peak_memory_mb(device):,.0f} MB, and "
            f"{available_memory(device) / 2**20:,.0f} MB are free now. Less is needed with a smaller batch "
            "(--optim.batch-size, or auto for the largest that fits), with the batch in parts (--optim.accumulate 2), "
            "with smaller or fewer crops (--crops.global-size, --crops.num-local), or with "
            f"--efficiency.activation-checkpointing full{data}. The last checkpoint is whole "
            f"({' '.join(str(error).split())[:200] or type(error).__name__})"
        ) from error


def available_memory(device: torch.device) -> int:
    """Bytes that this process may use: of a GPU, or what is free of the machine, within the limits of a container.

    Where the system does not tell (macOS), half of what the machine has.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
    information = Path("/proc/meminfo")
    if not information.is_file():
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    free = 1024 * int(information.read_text(encoding="utf-8").partition("MemAvailable:")[2].split()[0])
    limit, used = (Path("/sys/fs/cgroup") / name for name in ("memory.max", "memory.current"))
    if limit.is_file() and (text := limit.read_text(encoding="utf-8").strip()) != "max":
        free = min(free, max(int(text) - int(used.read_text(encoding="utf-8")), 0))
    return free
