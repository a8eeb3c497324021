"""Watches over the processes of one run: which is slower than the others, and where each is in a step that hangs."""

import contextlib
import faulthandler
import os
import socket
import threading
from collections.abc import Iterator

import torch

from selfpatch.distributed import gather_rows, rank, world_size

# A rank is slow if its own work takes so many times as long as that of the others, in so many lines in a row.
SLOW_RATIO, NUM_LINES = 1.5, 3


class RankBalance:
    """Tells the slowest rank from the seconds for which each did not wait for others."""

    def __init__(self) -> None:
        self._slow, self._num_lines, self._told = -1, 0, -1

    def update(self, busy_s: float) -> tuple[dict[str, float], str | None]:
        """
        Args:
            busy_s: seconds of this rank's own work since the last call; all ranks call it.

        Returns:
            values for the log (none for a single process), and a message once per slow rank.
        """
        if world_size() == 1:
            return {}, None
        seconds = gather_rows(torch.tensor([busy_s])).tolist()
        slowest = max(range(len(seconds)), key=seconds.__getitem__)
        others = (sum(seconds) - seconds[slowest]) / (len(seconds) - 1)
        ratio = seconds[slowest] / max(others, 1e-9)
        slow = slowest if ratio > SLOW_RATIO else -1
        self._num_lines = self._num_lines + 1 if slow == self._slow else 1
        self._slow = slow
        values = {"slowest_rank": float(slowest), "slowest_rank_ratio": ratio}
        if slow < 0 or self._num_lines < NUM_LINES or slow == self._told:
            return values, None
        self._told = slow
        return values, (
            f"warning: rank {slow} is slow: its own work takes {ratio:.1f} times as long as that of the others, which "
            "wait for it. See whether its machine has other work, a slower disk, or a device that is too hot"
        )


class StackWatchdog:
    """Prints where every thread of this process is when a step takes longer than `seconds`, once per step.

    So each of several processes shows where it is, the one that hangs and those that wait for it.
    """

    def __init__(self, seconds: float):
        self._seconds = seconds

    @contextlib.contextmanager
    def watching(self, step: int) -> Iterator[None]:
        """Watch what is inside; nothing where there is one process."""
        if world_size() == 1:
            yield
            return
        timer = threading.Timer(self._seconds, self._print, args=(step,))
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def _print(self, step: int) -> None:
        header = f"rank {rank()} (process {os.getpid()} on {socket.gethostname()}) is in step {step + 1} for "
        os.write(2, f"{header}{self._seconds:.0f} s. Where its threads are:\n".encode())
        faulthandler.dump_traceback(file=2, all_threads=True)
