"""How much memory a run has taken."""

import resource
import sys

import torch


def peak_memory_mb(device: torch.device) -> float:
    """Largest so far: allocated on a GPU, or resident in the main process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)
