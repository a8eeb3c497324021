"""Cores that a process may use."""

import os


def num_cores() -> int:
    """Those that this process was given; macOS does not tell, so there it is all of them."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
