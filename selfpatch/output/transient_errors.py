"""Errors of a disk that may pass: a network file system that is away for a moment is asked again."""

import errno
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

# What network file systems answer while a server restarts, a handle is stale or a network is away.
TRANSIENT = frozenset(
    getattr(errno, name)
    for name in ("EIO", "ESTALE", "ETIMEDOUT", "EAGAIN", "EINTR", "ENETDOWN", "ENETUNREACH", "EHOSTDOWN", "EREMOTEIO")
    if hasattr(errno, name)
)
# Seconds before the second, third and fourth try.
PAUSES = (0.1, 1.0, 5.0)


def retried(operation: Callable[[], T]) -> T:
    """The result of `operation`, which is tried again after errors that may pass; others, and the last, are raised."""
    for pause in PAUSES:
        try:
            return operation()
        except OSError as error:
            if error.errno not in TRANSIENT:
                raise
        time.sleep(pause)
    return operation()
