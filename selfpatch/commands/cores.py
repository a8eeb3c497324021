"""How many processes are worth starting."""

import os


def num_cores() -> int:
    """Cores that this process may use; macOS does not tell, so there it is all of them."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def num_workers(given: int | None) -> int:
    """Processes that read and crop images: as given, or as many as cores, at most 16."""
    return min(num_cores(), 16) if given is None else given
