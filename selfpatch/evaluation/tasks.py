"""Every evaluation task by its name, and how one is run from a folder of data to result.json and pictures."""

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from selfpatch.evaluation import in_context_segmentation, linear_segmentation
from selfpatch.evaluation.protocols import protocol_name
from selfpatch.evaluation.result import Result
from selfpatch.evaluation.task import Context, Outcome
from selfpatch.versions import versions

# (backbone, folder of data, protocol, context) -> outcome
RUN: dict[str, Callable[[Any, Path, Any, Context], Outcome]] = {
    "in-context-segmentation": in_context_segmentation.run,
    "linear-segmentation": linear_segmentation.run,
}


def run_task(task: str, backbone: Any, data: Path, protocol: Any, context: Context, *, model: str) -> Result:
    """Run a task and write OUT/result.json and OUT/pictures.

    Args:
        protocol: the task's settings.
        model: as the user named it.

    Raises:
        ValueError: the data are not complete and consistent, or do not fit the model or the protocol.
    """
    start = time.monotonic()
    outcome = RUN[task](backbone, data, protocol, context)
    # Not with the protocol: what is said of the data does not make it another one.
    met = {name: value for name, value in outcome.met.items() if name != "notes"}
    result = Result(
        task=task,
        protocol={"name": protocol_name(task, protocol)} | dataclasses.asdict(protocol) | met,
        metrics=outcome.metrics,
        model=model,
        data=str(data),
        seconds=time.monotonic() - start,
        versions=versions(),
        notes=[*getattr(backbone, "notes", ()), *outcome.met.get("notes", ())],
    )
    result.write(context.out / "result.json")
    return result
