"""All trackers of a run: checked before it, given its numbers and pictures, dropped when they fail."""

from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from selfpatch.output.metric_logger import MetricLogger, read_metrics
from selfpatch.output.terminal import say
from selfpatch.output.tracking.tracker import TrackedRun, Tracker

# By name: the module, which has `require`, and the class in it. Imported only when asked for.
TRACKERS = {
    "tensorboard": ("selfpatch.output.tracking.tensorboard", "TensorBoard"),
    "wandb": ("selfpatch.output.tracking.wandb", "WandB"),
}


def require_trackers(names: Sequence[str]) -> None:
    """
    Raises:
        UserError: one of them is not installed, or needs a login that is not there.
    """
    for name in names:
        import_module(TRACKERS[name][0]).require()


class Trackers:
    """The trackers of a run. Whatever goes wrong in one is reported once, and the run goes on without it.

    What metrics.jsonl holds from earlier and a tracker does not is given to it first: also of a run that had no
    tracker until now.

    Args:
        names: of TRACKERS; none: nothing is written.
        out: the folder of the run, in which each tracker has tracking/NAME.
        logger: of the run, whose lines are passed on from now on.
        settings: of the run, as config.yaml has them.
        first_step: steps done.
        pictures: folder of the pictures of the run.
    """

    def __init__(
        self,
        names: Sequence[str],
        out: Path,
        logger: MetricLogger,
        *,
        settings: dict[str, Any],
        first_step: int,
        pictures: Path,
    ):
        self._alive: dict[str, Tracker] = {}
        self._pictures = pictures
        self._seen = self._times()
        for name in names:
            run = TrackedRun(out / "tracking" / name, out.absolute().name, settings, first_step)
            self._guarded(name, lambda name=name, run=run: self._open(name, run, read_metrics(logger.path)))
        if names:
            logger.listeners.append(self.log)

    def _open(self, name: str, run: TrackedRun, lines: list[dict[str, Any]]) -> None:
        module, kind = TRACKERS[name]
        tracker: Tracker = getattr(import_module(module), kind)(run)
        self._alive[name] = tracker
        say(f"{name}: {tracker.hint}")
        for line in lines:
            if line["step"] > tracker.logged_step:
                tracker.log(line["step"], _numbers(line))

    def log(self, step: int, values: dict[str, Any]) -> None:
        for name, tracker in list(self._alive.items()):
            self._guarded(name, lambda tracker=tracker: tracker.log(step, _numbers(values)))

    def log_pictures(self, step: int) -> dict[str, float]:
        """Pass on the pictures that were drawn since the last call. A callback of the training loop; logs nothing."""
        times = self._times() if self._alive else {}
        new = {path.stem: path for path, time in times.items() if self._seen.get(path) != time}
        self._seen = times
        for name, tracker in list(self._alive.items()) if new else []:
            self._guarded(name, lambda tracker=tracker: tracker.log_pictures(step, new))
        return {}

    def close(self) -> None:
        for name, tracker in list(self._alive.items()):
            self._guarded(name, tracker.close)
        self._alive = {}

    def _guarded(self, name: str, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception as error:  # of a program that is not ours, on a network or a full disk
            self._alive.pop(name, None)
            reason = " ".join(str(error).split())[:300] or type(error).__name__
            say(
                f"warning: {name} has failed ({reason}); the run goes on without it, and metrics.jsonl has every number"
            )

    def _times(self) -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in sorted(self._pictures.glob("*.png"))}


def _numbers(line: dict[str, Any]) -> dict[str, float]:
    values = {name: value for name, value in line.items() if name != "step"}
    return {name: value for name, value in values.items() if isinstance(value, int | float)}
