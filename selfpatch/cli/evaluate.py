"""Options of `selfpatch evaluate`: every setting of the protocol that the task and its preset give."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import arg

from selfpatch.cli.command import Command, given_value
from selfpatch.cli.options import FLAT, Device, Mean, Model, Network, NumHeads, Std
from selfpatch.errors import unknown_name
from selfpatch.evaluation.protocols import TASKS


def options(arguments: Sequence[str]) -> type:
    given_task = given_value(arguments, "--task") or "in-context-segmentation"
    if given_task not in TASKS:
        raise unknown_name("task", given_task, TASKS)
    presets, layout = TASKS[given_task]
    given_preset = given_value(arguments, "--preset") or next(iter(presets))
    if given_preset not in presets:
        raise unknown_name(f"preset of {given_task}", given_preset, presets)
    start = presets[given_preset]

    @dataclass(frozen=True)
    class Evaluate:
        """Score a model on a task; writes result.json and pictures, prints a table."""

        model: Model
        data: Annotated[Path, arg(help=f"data to score on: {layout}")]
        # the folder to write to
        out: Path
        protocol: Annotated[type(start), FLAT] = start  # type: ignore[valid-type]
        task: Annotated[str, arg(help=f"evaluation task: {', '.join(TASKS)}")] = given_task
        preset: Annotated[str, arg(help=f"named settings of the task: {', '.join(presets)}")] = given_preset
        num_heads: NumHeads = None
        network: Network = None
        device: Device = "auto"

    if hasattr(start, "mean"):  # the protocol normalizes images itself, by settings of these names
        return Evaluate

    @dataclass(frozen=True)
    class EvaluateNormalized(Evaluate):
        mean: Mean = None
        std: Std = None

    EvaluateNormalized.__doc__ = Evaluate.__doc__
    return EvaluateNormalized


def keywords(given: Any) -> dict[str, Any]:
    return {name: value for name, value in vars(given).items() if name != "preset"}


COMMAND = Command(
    "score a model on labeled images or videos", options, "selfpatch.commands.evaluate:evaluate", keywords
)
