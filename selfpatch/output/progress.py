"""Progress bars on the terminal, and in notebooks a line that is replaced."""

import contextlib
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.progress import track as rich_track
from rich.table import Column

from selfpatch.output.notebook import NotebookLine, notebook_line
from selfpatch.output.printable import LINES
from selfpatch.output.terminal import plain_text, say

T = TypeVar("T")


def track(items: Iterable[T], text: str, total: int) -> Iterable[T]:
    """The items, with a bar while they last, if stderr is a terminal, or a line in a notebook."""
    line = notebook_line()
    if line is not None:
        return _with_line(items, text, total, line)
    console = Console(stderr=True)
    return rich_track(items, text, total=total, console=console, transient=True, disable=not console.is_terminal)


def _with_line(items: Iterable[T], text: str, total: int, line: NotebookLine) -> Iterator[T]:
    line.show(f"{text} 0/{total}")
    for done, item in enumerate(items, start=1):
        yield item
        line.show(f"{text} {done}/{total}", last=done == total)


class PhaseProgressBar:
    """A bar on stderr, if that is a terminal, or a line in a notebook, from the first call until one says all is done.

    In between it is not there, so that several phases, each with a bar of its own, may follow each other.
    """

    def __init__(self, text: str):
        self._text = text
        self._bar: Progress | None = None
        self._line = notebook_line()

    def __call__(self, done: int, total: int) -> None:
        if self._line is not None:
            self._line.show(f"{self._text} {done}/{total}", last=done >= total)
            return
        if self._bar is None:
            console = Console(stderr=True)
            columns = (BarColumn(20), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
            self._bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
            self._task = self._bar.add_task(self._text)
            self._bar.start()
        self._bar.update(self._task, completed=done, total=total)
        if done >= total:
            self.close()

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


class TrainingProgress:
    """A bar with the objectives of the loss, speed, share of time waiting for data, memory and time left.

    Where the output is no terminal it is one line per log step, in a notebook one line that is replaced.
    """

    def __init__(self, first_step: int, num_steps: int):
        self._num_steps = num_steps
        self._first_step = first_step
        self._start = time.monotonic()
        self._bar = None
        self._line = notebook_line()
        if sys.stdout is not None and sys.stdout.isatty():
            # Steps and time left keep their room on a narrow terminal; the text behind them takes a second line.
            whole = Column(no_wrap=True, min_width=2 * len(str(num_steps)) + 1)
            columns = (
                BarColumn(10),
                MofNCompleteColumn(table_column=whole),
                TimeRemainingColumn(table_column=Column(no_wrap=True, min_width=7)),
                TextColumn("{task.description}", table_column=Column(overflow="fold")),
            )
            self._bar = Progress(*columns, console=Console())
            self._task = self._bar.add_task("first step ...", total=num_steps, completed=first_step)
            self._bar.start()

    def step(self, step: int) -> None:
        if self._bar is not None:
            with self._terminal():
                self._bar.update(self._task, completed=step + 1)

    def show(self, step: int, metrics: dict[str, Any]) -> None:
        losses = "  ".join(f"{k.removesuffix('/loss')} {v:.3f}" for k, v in metrics.items() if k.endswith("loss"))
        text = (
            f"{losses}  {metrics['images_per_second']:.0f} images/s  data {metrics['data_wait']:.0%}  "
            f"{metrics['memory_mb'] / 1024:.1f} GB"
        )
        if self._bar is not None:
            with self._terminal():
                self._bar.update(self._task, description=text)
        else:
            left = (time.monotonic() - self._start) / (step + 1 - self._first_step) * (self._num_steps - step - 1)
            text = f"step {step + 1}/{self._num_steps}  {text}  {_duration(left)} left"
            if self._line is not None:
                self._line.show(text, last=step + 1 == self._num_steps)
            else:
                say(text)

    def say(self, text: str) -> None:
        if self._bar is not None:
            with self._terminal():
                self._bar.console.print(plain_text(text, keep=LINES))
        else:
            say(text)

    def close(self) -> None:
        if self._bar is not None:
            with self._terminal():
                self._bar.stop()

    @contextlib.contextmanager
    def _terminal(self) -> Iterator[None]:
        """A terminal that was closed takes its bar with it, and not the run."""
        try:
            yield
        except OSError:
            self._bar = None
            sys.stdout = None  # type: ignore[assignment]


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"
