"""TensorBoard: an event file per attempt, in the format that its own classes write."""

import time
from importlib.util import find_spec
from pathlib import Path

from PIL import Image

from selfpatch.errors import UserError
from selfpatch.output.tracking.tracker import TrackedRun


def require() -> None:
    """
    Raises:
        UserError: TensorBoard is not installed.
    """
    if find_spec("tensorboard") is None:
        raise UserError(
            "track is tensorboard, and TensorBoard is not installed; install it (pip install 'selfpatch[tensorboard]') "
            "or leave it out. The same numbers are in metrics.jsonl (docs/trackers.md)"
        )


class TensorBoard:
    """An event file beside those of earlier attempts, which says from which step on theirs are void.

    Written and flushed line by line, so that a killed run has all that metrics.jsonl has. TensorBoard keeps numbers as
    float32.
    """

    def __init__(self, run: TrackedRun):
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._event, self._summary = event_pb2.Event, summary_pb2.Summary
        run.folder.mkdir(parents=True, exist_ok=True)
        self.hint = f"tensorboard --logdir {run.folder}"
        self.logged_step = last_step(run.folder, before=run.first_step + 1)
        self._writer = RecordWriter(_next_file(run.folder).open("xb"))
        self._write(self._event(wall_time=time.time(), file_version="brain.Event:2"))
        first_valid = run.first_step + 1 if run.first_step else 0  # a run that begins again scores its start again
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._write(self._event(wall_time=time.time(), step=first_valid, session_log=start))

    def log(self, step: int, values: dict[str, float]) -> None:
        self._add(step, [self._summary.Value(tag=name, simple_value=value) for name, value in values.items()])

    def log_pictures(self, step: int, pictures: dict[str, Path]) -> None:
        for name, file in pictures.items():
            with Image.open(file) as image:
                width, height = image.size
            png = self._summary.Image(
                encoded_image_string=file.read_bytes(), width=width, height=height, colorspace=len(image.getbands())
            )
            self._add(step, [self._summary.Value(tag=name, image=png)])

    def _add(self, step: int, values: list) -> None:
        self._write(self._event(wall_time=time.time(), step=step, summary=self._summary(value=values)))

    def _write(self, event) -> None:
        self._writer.write(event.SerializeToString())
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


def last_step(folder: Path, *, before: int) -> int:
    """The last step below `before` of which the event files of a folder have a number; -1: none.

    A step that is there is there with all its numbers: a checkpoint is written after the line of its step.
    """
    from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
    from tensorboard.compat.proto import event_pb2

    last = -1
    for file in sorted(folder.glob("events.out.tfevents.*")):
        for record in RawEventFileLoader(str(file)).Load():
            event = event_pb2.Event.FromString(record)
            if event.HasField("summary") and event.step < before:
                last = max(last, event.step)
            elif event.HasField("session_log"):  # what came from there on is void
                last = min(last, event.step - 1)
    return last


def _next_file(folder: Path) -> Path:
    """TensorBoard reads files in the order of their names, in which comes first when they were begun."""
    begun = [int(file.name.split(".")[3]) for file in folder.glob("events.out.tfevents.*.run")]
    return folder / f"events.out.tfevents.{max(int(time.time()), *(time_ + 1 for time_ in begun), 0):010d}.run"
