"""Progress in notebooks: one line of a cell's output that is replaced while the work goes on."""

import sys
import time
from typing import Any

from selfpatch.output.printable import printable

# Seconds between two texts: each goes through the kernel to the browser.
INTERVAL_S = 0.2


class NotebookLine:
    """A line of text in the output of the cell that runs."""

    def __init__(self) -> None:
        self._handle: Any = None
        self._shown_at = -INTERVAL_S

    def show(self, text: str, *, last: bool = False) -> None:
        """Replace the line; unless it is the `last` one, texts that come too fast are passed over."""
        now = time.monotonic()
        if not last and now - self._shown_at < INTERVAL_S:
            return
        self._shown_at = now
        content = {"text/plain": printable(text, keep="\\")}
        if self._handle is None:
            from IPython.display import display  # there, as a notebook runs

            self._handle = display(content, raw=True, display_id=True)
        else:
            self._handle.update(content, raw=True)


def notebook_line() -> NotebookLine | None:
    """A line for a new piece of work, or None if no notebook runs: in a terminal, IPython's too."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return None if getattr(shell, "kernel", None) is None else NotebookLine()
