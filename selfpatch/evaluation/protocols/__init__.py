"""Every number of every evaluation task, named and with its source. Imports no torch, so that `--help` is quick.

A score means something only together with its protocol: the whole of it goes into result.json. One file a task: its
settings, and the presets that have a name.
"""

from typing import Any, NamedTuple

from selfpatch.evaluation.protocols import in_context_segmentation, linear_segmentation

LABELLED_IMAGES = "labelled images: ADE20K, Pascal VOC 2012, Cityscapes, or images/ and masks/"


class Task(NamedTuple):
    """What can be known of a task without torch."""

    presets: dict[str, Any]  # settings by name; the first is the default
    data: str  # what the folder of data must be, in a few words


TASKS = {
    "in-context-segmentation": Task(in_context_segmentation.PRESETS, LABELLED_IMAGES),
    "linear-segmentation": Task(linear_segmentation.PRESETS, LABELLED_IMAGES),
}


def protocol_name(task: str, protocol: Any) -> str:
    """The name of the preset that has exactly these settings; a number under another's name would mislead."""
    return next((name for name, preset in TASKS[task].presets.items() if preset == protocol), "custom")
