"""Files that are written beside training, by a thread, one after the other."""

import threading
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType


class BackgroundWriter:
    """At most one job is under way. What goes wrong in it is raised by whichever call comes next, once.

    Leaving the context waits for the job, whatever was raised; after Ctrl-C it does not: the job ends with the process.
    """

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def submit(self, job: Callable[[], None]) -> None:
        """Start a job, as soon as the one before has ended; it must touch nothing that training changes."""
        self.wait()
        self._thread = threading.Thread(target=self._run, args=(job,), daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Until nothing is under way."""
        if self._thread is not None:
            self._thread.join()
        self.raise_error()

    def raise_error(self) -> None:
        """Without waiting: raise what has gone wrong until now."""
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _run(self, job: Callable[[], None]) -> None:
        try:
            job()
        except BaseException as error:
            self._error = error

    def __enter__(self) -> "BackgroundWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            self.wait()
        elif not isinstance(error, KeyboardInterrupt):
            with suppress(Exception):  # the first error is the one to report
                self.wait()
