"""All frozen tasks that a folder of data allows, one after another, on features that are encoded once."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from selfpatch.backbones.backbone import Backbone
from selfpatch.errors import UserError
from selfpatch.evaluation.datasets import box_folder, class_folder, davis, segmentation
from selfpatch.evaluation.feature_cache import CachedBackbone
from selfpatch.evaluation.head_training import OtherTrainingError
from selfpatch.evaluation.protocols import TASKS
from selfpatch.evaluation.protocols.all_frozen import AllFrozen
from selfpatch.evaluation.result import Result
from selfpatch.evaluation.task import EvalContext, EvalOutput
from selfpatch.output.progress import say
from selfpatch.training.loop import DivergenceError

# Whether a folder looks like what a task needs; whether it is complete is for the task to say.
DATA_MATCHERS: dict[str, Callable[[Path], bool]] = {
    "in-context-segmentation": segmentation.matches_layout,
    "linear-segmentation": segmentation.matches_layout,
    "overclustering": segmentation.matches_layout,
    "video-segmentation": davis.matches_layout,
    "object-discovery": box_folder.matches_layout,
    "knn-classification": class_folder.matches_layout,
    "linear-classification": class_folder.matches_layout,
}

RunTask = Callable[[str, Backbone, Path, Any, EvalContext], Result]


class PlannedTask(NamedTuple):
    task: str
    candidates: list[Path]  # folders that look like its data; the first that is complete is taken


def run(backbone: Backbone, root: Path, protocol: AllFrozen, context: EvalContext, *, run_task: RunTask) -> EvalOutput:
    """Run each task into a folder of its own below OUT, and sum up: the headline of each.

    A task whose data turn out not to be complete is left out, and why is said; the others are run.

    Raises:
        UserError: no task fits the data, or one that was asked for does not; or OUT holds layers of another model.
    """
    plan = find_tasks(root, protocol.tasks)
    folder = protocol.cache or context.out / "features"
    cached = CachedBackbone(backbone, folder, max_bytes=protocol.cache_gb * 1e9)
    metrics: dict[str, float] = {}
    protocols: dict[str, dict[str, Any]] = {}
    refused: list[str] = []
    for place, (task, candidates) in enumerate(plan, start=1):
        say(f"{place}/{len(plan)} {task}")
        presets = TASKS[task].presets
        settings = presets["quick"] if protocol.protocols == "quick" else next(iter(presets.values()))
        result, reasons = None, []
        for data in candidates:
            try:
                result = run_task(task, cached, data, settings, context._replace(out=context.out / task))
                break
            except OtherTrainingError:
                raise  # of another model: its results must not stand beside this one's
            except (UserError, DivergenceError) as error:
                reasons.append(str(error))
        if result is None:
            (context.out / task / "result.json").unlink(missing_ok=True)  # of an earlier time
            refused.append(f"{task} was left out: {'; '.join(reasons)}")
            say(f"    {refused[-1]}")
            continue
        headline, value = next(iter(result.metrics.items()))
        say(f"    {headline} {100 * value:.2f} % on {result.data}, {result.seconds:.0f} s")
        metrics[f"{task}/{headline}"] = value
        protocols[task] = result.protocol
    if not metrics:
        raise UserError("\n".join(refused))
    say(f"features: {cached.num_encoded} times encoded, {cached.num_found} times found in {folder}")
    return EvalOutput(metrics, {"notes": refused}, {"protocol_of": protocols})


def find_tasks(root: Path, wanted: tuple[str, ...]) -> list[PlannedTask]:
    """Every task with the data sets that fit it: `root` itself, or folders in it."""
    if not root.is_dir():
        raise UserError(f"there is no folder {root}; give a data set, or a folder that holds some")
    if unknown := [task for task in wanted if task not in DATA_MATCHERS]:
        raise UserError(f"unknown frozen task {unknown[0]!r}; there are: {', '.join(DATA_MATCHERS)}")
    folders = [root, *sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))]
    plan = [
        PlannedTask(task, candidates)
        for task, fits in DATA_MATCHERS.items()
        if (not wanted or task in wanted) and (candidates := list(filter(fits, folders)))
    ]
    missing = [task for task in wanted if task not in {planned.task for planned in plan}]
    if missing or not plan:
        needs = "".join(f"\n  {task}: {TASKS[task].data}" for task in missing or DATA_MATCHERS)
        raise UserError(f"neither {root} nor a folder in it holds the data of{needs}")
    return plan
