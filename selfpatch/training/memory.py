"""Memory that a run has taken, and memory that there is."""

import os
import resource
import sys
from pathlib import Path

import torch


def peak_memory_mb(device: torch.device) -> float:
    """Largest so far: allocated on a GPU, or resident in the main process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


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
