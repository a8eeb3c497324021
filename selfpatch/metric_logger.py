"""Where numbers of a run go: a line of JSON each, and the terminal."""

import json
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn, track
from rich.table import Column

T = TypeVar("T")


class MetricLogger:
    """Appends to a .jsonl file, one object a line. A full disk costs lines, not the run: it is said once."""

    def __init__(self, path: Path, *, first_step: int = 0):
        self.path = path
        self._failed = False
        if path.exists():  # a run that goes on writes again what came after its checkpoint
            kept = [line for line in read_metrics(path) if line["step"] <= first_step]
            path.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")

    def log(self, step: int, values: dict[str, Any]) -> None:
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": step, **values}) + "\n")
        except OSError as error:
            if not self._failed:
                say(f"warning: {self.path} cannot be written ({error.strerror}); the run goes on without")
            self._failed = True


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All whole lines, none of a file that is not there; the last one may have been cut by a crash."""
    lines = []
    if not path.exists():
        return lines
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(text))
        except ValueError:
            continue
    return lines


def say(text: str) -> None:
    """Print a line; a closed terminal does not stop a run."""
    try:
        print(text, flush=True)
    except OSError:
        sys.stdout = None  # type: ignore[assignment]


def with_progress(items: Iterable[T], text: str, total: int) -> Iterable[T]:
    """The items, with a bar while they last, if stderr is a terminal."""
    console = Console(stderr=True)
    return track(items, text, total=total, console=console, transient=True, disable=not console.is_terminal)


class ReportBar:
    """A bar on stderr, if that is a terminal, from the first call to the one that says that all is done.

    In between it is not there, so that several phases, each with a bar of its own, may follow each other.
    """

    def __init__(self, text: str):
        self._text = text
        self._bar: Progress | None = None

    def __call__(self, done: int, total: int) -> None:
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
    """A bar with the terms of the loss, speed, share of time waiting for data, memory and time left.

    Where the output is no terminal it is a line a log step.
    """

    def __init__(self, first_step: int, num_steps: int):
        self._num_steps = num_steps
        self._first_step = first_step
        self._start = time.monotonic()
        self._bar = None
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
            self._bar.update(self._task, completed=step + 1)

    def show(self, step: int, metrics: dict[str, Any]) -> None:
        terms = "  ".join(f"{k.removesuffix('/loss')} {v:.3f}" for k, v in metrics.items() if k.endswith("loss"))
        text = (
            f"{terms}  {metrics['images_per_second']:.0f} images/s  data {metrics['data_wait']:.0%}  "
            f"{metrics['memory_mb'] / 1024:.1f} GB"
        )
        if self._bar is not None:
            self._bar.update(self._task, description=text)
        else:
            left = (time.monotonic() - self._start) / (step + 1 - self._first_step) * (self._num_steps - step - 1)
            say(f"step {step + 1}/{self._num_steps}  {text}  {_duration(left)} left")

    def say(self, text: str) -> None:
        if self._bar is not None:
            self._bar.console.print(text, highlight=False, markup=False)
        else:
            say(text)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"
