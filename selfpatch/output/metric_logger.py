"""Metrics of a run: one JSON object per line."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from selfpatch.output.atomic_files import atomic_write, open_to_append
from selfpatch.output.terminal import say


class MetricLogger:
    """Appends to a .jsonl file, one object per line. Write errors are reported once and do not stop training."""

    def __init__(self, path: Path, *, first_step: int = 0):
        self.path = path
        self.latest: dict[str, tuple[int, Any]] = {}  # by name: the last value logged, and its step
        self.listeners: list[Callable[[int, dict[str, Any]], None]] = []  # called with every line
        self._failed = False
        if path.exists():  # a run that goes on writes again what came after its checkpoint
            kept = [line for line in read_metrics(path) if first_step > 0 and line["step"] <= first_step]
            with atomic_write(path) as file:
                file.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")

    def log(self, step: int, values: dict[str, Any]) -> None:
        self.latest |= {name: (step, value) for name, value in values.items()}
        try:
            with open_to_append(self.path) as file:
                file.write(json.dumps({"step": step, **values}) + "\n")
        except OSError as error:
            if not self._failed:
                say(f"warning: {self.path} cannot be written ({error.strerror}); the run goes on without")
            self._failed = True
        for listener in self.listeners:
            listener(step, values)


class NoLogger(MetricLogger):
    """Of a process that leaves the log to another one."""

    def __init__(self, path: Path):
        self.path, self.latest, self.listeners = path, {}, []

    def log(self, step: int, values: dict[str, Any]) -> None:
        pass


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All whole lines, none of a file that is not there; a crash may have cut the last one, or a disk damaged some."""
    lines = []
    if not path.exists():
        return lines
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            continue
        if isinstance(line, dict) and type(line.get("step")) is int:
            lines.append(line)
    return lines
