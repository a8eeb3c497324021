"""Options of `selfpatch evaluate`: those of one task's protocol, or of a run over the tasks of frozen features."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import arg

from selfpatch.cli.command import Command, given_value
from selfpatch.cli.options import FLAT, Device, Mean, Model, Network, NumChannels, NumHeads, Std
from selfpatch.errors import UserError, unknown_name
from selfpatch.evaluation.protocols import FROZEN_DATA, TASKS
from selfpatch.evaluation.protocols.frozen_tasks import FrozenTasks
from selfpatch.output.terminal import say

FORMER_NAME = "all-frozen"  # of --tasks frozen, when it was a task


@dataclass(frozen=True)
class EvaluateFrozen:
    """Score a model on all tasks of frozen features that the data allow, or on some of them."""

    model: Model
    data: Annotated[Path, arg(help=f"data to score on: {FROZEN_DATA}")]
    # the folder to write to: TASK/result.json and TASK/pictures for each task, and summary.json
    out: Path
    frozen: Annotated[FrozenTasks, FLAT] = FrozenTasks()
    num_heads: NumHeads = None
    network: Network = None
    num_channels: NumChannels = None
    mean: Mean = None
    std: Std = None
    device: Device = "auto"


@dataclass(frozen=True)
class EvaluateAllFrozen(EvaluateFrozen):
    """The former form of --tasks frozen."""

    # former form of --tasks frozen
    task: str = FORMER_NAME
    # former name of --preset
    protocols: Literal["published", "quick"] | None = None


def options(arguments: Sequence[str]) -> type:
    task, tasks = given_value(arguments, "--task"), given_value(arguments, "--tasks")
    if task == FORMER_NAME:
        return EvaluateAllFrozen
    if task and tasks:
        raise UserError("give --task for one task or --tasks for several, not both")
    if tasks:
        return EvaluateFrozen
    given_task = task or "in-context-segmentation"
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
        task: Annotated[str, arg(help=f"evaluation task: {', '.join(TASKS)}; several: --tasks frozen")] = given_task
        preset: Annotated[str, arg(help=f"named settings of the task: {', '.join(presets)}")] = given_preset
        # keep the trained head and its backbone in OUT/model, with which selfpatch predict segments other images; of
        # linear-segmentation, semantic-fpn and upernet
        keep_head: bool = False
        num_heads: NumHeads = None
        network: Network = None
        num_channels: NumChannels = None
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
    if isinstance(given, EvaluateAllFrozen):
        say(f"--task {FORMER_NAME} is now called --tasks frozen")
        preset = given.protocols or given.frozen.preset
        shared = {name: value for name, value in vars(given).items() if name not in ("task", "protocols")}
        return shared | {"frozen": replace(given.frozen, preset=preset)}
    return {name: value for name, value in vars(given).items() if name != "preset"}


class EvaluateCommand(Command):
    """A command of two functions: one for one task, one for several."""

    def __call__(self, options: Any) -> int:
        name = "evaluate_frozen" if isinstance(options, EvaluateFrozen) else "evaluate"
        return Command.__call__(self._replace(function=f"selfpatch.commands.evaluate:{name}"), options)


COMMAND = EvaluateCommand(
    "score a model on labeled images or videos", options, "selfpatch.commands.evaluate:evaluate", keywords
)
