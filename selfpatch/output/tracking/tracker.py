"""The contract of a tracker: a program that shows the numbers and pictures of runs."""

from pathlib import Path
from typing import Any, NamedTuple, Protocol


class TrackedRun(NamedTuple):
    """A run as a tracker is told of it."""

    folder: Path  # of this tracker, in that of the run; it is made when it is needed
    name: str
    settings: dict[str, Any]  # as config.yaml has them
    first_step: int  # steps done; what was logged of later ones by an earlier attempt is no longer true


class Tracker(Protocol):
    """What a tracker does. Any error in it costs the tracker, not the run.

    Every tracker takes up the same run again: it has each step once, however often the run was stopped or killed.
    """

    hint: str  # for the terminal: how its pages are opened
    logged_step: int  # the last step that it holds from earlier attempts, -1 for none; it is given those after it

    def log(self, step: int, values: dict[str, float]) -> None:
        """Numbers of a step, which is that of the call before or a later one."""
        ...

    def log_pictures(self, step: int, pictures: dict[str, Path]) -> None:
        """PNG files by name, as they stand after a step."""
        ...

    def close(self) -> None:
        """Write what is left."""
        ...
