"""Ctrl-C, SIGTERM, a terminal that closes and SLURM's warning end a run after the step it is in, with a checkpoint."""

import signal
import threading
from types import FrameType, TracebackType


class StopSignal:
    """While entered, remembers the first signal that asks to stop; a second Ctrl-C stops at once."""

    SIGNALS = tuple(
        getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2") if hasattr(signal, name)
    )

    def __init__(self) -> None:
        self.received: signal.Signals | None = None

    def __enter__(self) -> "StopSignal":
        # Python lets the main thread alone handle signals; elsewhere nothing can be remembered.
        numbers = self.SIGNALS if threading.current_thread() is threading.main_thread() else ()
        # What is ignored stays so: `nohup` means that.
        heard = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]
        self._before = {number: signal.signal(number, self._remember) for number in heard}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _remember(self, number: int, _frame: FrameType | None) -> None:
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = signal.Signals(number)
