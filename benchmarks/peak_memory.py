"""Peak memory of a process, for benchmarks that start one for each figure."""

from pathlib import Path


def peak_mb() -> float:
    """Largest resident size of this process so far, in MB.

    Not getrusage: its peak includes that of the process this one was forked from.
    """
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024
