"""All tasks of frozen features that a folder of data allows, one after another; images are encoded once."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from selfpatch.backbones.backbone import Backbone
from selfpatch.errors import UserError
from selfpatch.evaluation.datasets import box_folder, class_folder, davis, segmentation
from selfpatch.evaluation.feature_cache import CachedBackbone
from selfpatch.evaluation.head_training import OtherTrainingError
from selfpatch.evaluation.protocols import TASKS
from selfpatch.evaluation.protocols.frozen_tasks import FROZEN, FrozenTasks
from selfpatch.evaluation.result import Result
from selfpatch.evaluation.task import EvalContext
from selfpatch.evaluation.tasks import run_task
from selfpatch.output.atomic_files import atomic_write
from selfpatch.output.terminal import say
from selfpatch.training.loop import DivergenceError

# Whether a folder has the layout that a task needs; the task itself checks that it is complete.
DATA_MATCHERS: dict[str, Callable[[Path], bool]] = {
    "in-context-segmentation": segmentation.matches_layout,
    "linear-segmentation": segmentation.matches_layout,
    "overclustering": segmentation.matches_layout,
    "video-segmentation": davis.matches_layout,
    "object-discovery": box_folder.matches_layout,
    "knn-classification": class_folder.matches_layout,
    "linear-classification": class_folder.matches_layout,
}


class PlannedTask(NamedTuple):
    task: str
    candidates: list[Path]  # folders with its layout; the first complete one is used


class FrozenResults(NamedTuple):
    results: dict[str, Result]  # by task
    left_out: dict[str, str]  # task -> reason


def run(backbone: Backbone, root: Path, settings: FrozenTasks, context: EvalContext) -> FrozenResults:
    """Run each task into a folder of its own below OUT, and write OUT/summary.json: the headline of each.

    A task whose data turn out to be incomplete, or whose training diverges, is left out with its reason; the others
    run. Any other error ends the run.

    Raises:
        UserError: no task fits the data, or one that was asked for does not; or OUT holds heads of another model.
    """
    plan = find_tasks(root, settings.tasks)
    folder = settings.cache or context.out / "features"
    cached = CachedBackbone(backbone, folder, max_bytes=settings.cache_gb * 1e9)
    results: dict[str, Result] = {}
    left_out: dict[str, str] = {}
    for place, planned in enumerate(plan, start=1):
        say(f"{place}/{len(plan)} {planned.task}")
        result, reasons = run_first_complete(cached, planned, settings, context)
        if result is None:
            left_out[planned.task] = "; ".join(reasons)
            (context.out / planned.task / "result.json").unlink(missing_ok=True)  # of an earlier run
            say(f"    {planned.task} was left out: {left_out[planned.task]}")
            continue
        results[planned.task] = result
        headline, value = next(iter(result.metrics.items()))
        say(f"    {headline} {100 * value:.2f} % on {result.data}, {result.seconds:.0f} s")
    if not results:
        raise UserError("\n".join(f"{task} was left out: {reason}" for task, reason in left_out.items()))
    say(f"features: {cached.num_encoded} times encoded, {cached.num_found} times found in {folder}")
    write_summary(results, left_out, context.out / "summary.json")
    return FrozenResults(results, left_out)


def run_first_complete(
    backbone: CachedBackbone, planned: PlannedTask, settings: FrozenTasks, context: EvalContext
) -> tuple[Result | None, list[str]]:
    """The result on the first candidate that is complete, or None with the reason for each."""
    presets = TASKS[planned.task].presets
    protocol = presets["quick"] if settings.preset == "quick" else next(iter(presets.values()))
    reasons = []
    for data in planned.candidates:
        try:
            out = context.out / planned.task
            return run_task(planned.task, backbone, data, protocol, context._replace(out=out)), []
        except OtherTrainingError:
            raise  # of another model: its results must not stand beside those of this one
        except (UserError, DivergenceError) as error:
            reasons.append(str(error))
    return None, reasons


def find_tasks(root: Path, wanted: tuple[str, ...]) -> list[PlannedTask]:
    """Every wanted task with the data sets that fit it: `root` itself, or folders in it.

    Args:
        wanted: names of tasks; "frozen" stands for all that fit.
    """
    if not root.is_dir():
        raise UserError(f"there is no folder {root}; give a data set, or a folder that holds some")
    named = [task for task in wanted if task != FROZEN]
    if unknown := [task for task in named if task not in DATA_MATCHERS]:
        raise UserError(
            f"unknown frozen task {unknown[0]!r}; there are: {', '.join(DATA_MATCHERS)}, and {FROZEN} for all of them"
        )
    folders = [root, *sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))]
    plan = [
        PlannedTask(task, candidates)
        for task, matches in DATA_MATCHERS.items()
        if (FROZEN in wanted or task in named) and (candidates := list(filter(matches, folders)))
    ]
    missing = [task for task in named if task not in {planned.task for planned in plan}]
    if missing or not plan:
        needs = "".join(f"\n  {task}: {TASKS[task].data}" for task in missing or DATA_MATCHERS)
        raise UserError(f"neither {root} nor a folder in it holds the data of{needs}")
    return plan


def write_summary(results: dict[str, Result], left_out: dict[str, str], path: Path) -> None:
    headlines = {}
    for task, result in results.items():
        metric, value = next(iter(result.metrics.items()))
        headlines[task] = {
            "metric": metric, "value": value, "protocol": result.protocol["name"], "data": result.data,
            "result": f"{task}/result.json",
        }  # fmt: skip
    text = json.dumps({"tasks": headlines, "left_out": left_out}, indent=2, ensure_ascii=False)
    with atomic_write(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8", errors="backslashreplace")  # as result.json
