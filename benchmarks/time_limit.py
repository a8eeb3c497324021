"""A limit on the time of a benchmark that goes on when it is called again."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from selfpatch.errors import StoppedError


class OutOfTimeError(Exception):
    """The same command goes on."""


@contextmanager
def time_limit(minutes: float) -> Iterator[None]:
    """After so many minutes SIGTERM comes: a training saves itself, everything else is left and done anew next time."""

    def stop(_number: int, _frame: Any) -> None:
        raise OutOfTimeError

    before = signal.signal(signal.SIGTERM, stop)
    timer = threading.Timer(60 * minutes, os.kill, (os.getpid(), signal.SIGTERM))
    timer.daemon = True
    timer.start()
    try:
        yield
    except StoppedError as error:  # a linear layer in its training
        raise OutOfTimeError from error
    finally:
        timer.cancel()
        signal.signal(signal.SIGTERM, before)
