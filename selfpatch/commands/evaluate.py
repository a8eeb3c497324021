"""`selfpatch evaluate`: score a model on one task, or on all tasks of frozen features; result.json, pictures, table."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from selfpatch.backbones.backbone import Backbone
from selfpatch.backbones.pretrained import load_backbone
from selfpatch.commands.report.evaluation_report import report_evaluation, report_frozen
from selfpatch.commands.run_setup.hardware import find_device
from selfpatch.errors import unknown_name, working
from selfpatch.evaluation import frozen_tasks
from selfpatch.evaluation.frozen_tasks import FrozenResults
from selfpatch.evaluation.protocols import TASKS
from selfpatch.evaluation.protocols.frozen_tasks import FrozenTasks
from selfpatch.evaluation.result import Result
from selfpatch.evaluation.segmentation.kept_head import BACKBONE_FILE, require_keepable, save_head
from selfpatch.evaluation.task import EvalContext, TrainedHead
from selfpatch.evaluation.tasks import run_task
from selfpatch.export.timm_file import export_timm
from selfpatch.output.atomic_files import require_writable
from selfpatch.output.progress import PhaseProgressBar
from selfpatch.output.terminal import TextTable, say, show_table
from selfpatch.visualization.report.page import REPORT


def evaluate(
    model: Path | str,
    *,
    task: str = "in-context-segmentation",
    data: Path | str,
    out: Path | str,
    protocol: Any = None,
    num_heads: int | None = None,
    network: str | None = None,
    num_channels: int | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    device: str = "auto",
    keep_head: bool = False,
) -> Result:
    """Score a model on a task; writes `out`/result.json, pictures and report.html, and prints a table.

    Args:
        model: anything `load_backbone` takes: a run folder, an exported file, an original checkpoint, timm:NAME.
        protocol: the task's settings, or the name of a preset; None: the published ones.
        num_heads, network, num_channels, mean, std: of a checkpoint, as in `load_backbone`.
        keep_head: write the trained head and its backbone to `out`/model, for `predict`.

    Raises:
        UserError: an unknown task or preset; a model, data or device that are not there or do not fit.
    """
    if task not in TASKS:
        raise unknown_name("task", task, TASKS)
    if protocol is None or isinstance(protocol, str):
        presets = TASKS[task].presets
        name = protocol or next(iter(presets))
        if name not in presets:
            raise unknown_name(f"preset of {task}", name, presets)
        protocol = presets[name]
    checkpoint = {
        "num_heads": num_heads, "network": network, "num_channels": num_channels, "mean": mean, "std": std,
    }  # fmt: skip
    if keep_head:
        require_keepable(task, protocol)
    with prepared(task, model, Path(out), device, checkpoint) as (backbone, context):
        if keep_head:
            context = context._replace(keep_head=lambda trained: write_model(trained, Path(out) / "model"))
        result = run_task(task, backbone, Path(data), protocol, context)
    is_reported = report_evaluation(Path(out), result)
    show_table(table(result))
    for note in result.notes[len(backbone.notes) :]:  # those of the model have been printed
        say(note)
    files = [Path(out) / "result.json", Path(out) / "pictures", *([Path(out) / REPORT] if is_reported else [])]
    written = [str(path) for path in files if path.exists()]
    say("  ".join(written))
    if keep_head:
        say(f"the head is kept: selfpatch predict {out} IMAGES MASKS")
    return result


def write_model(trained: TrainedHead, folder: Path) -> None:
    """A trained head with its backbone, as `predict` reads them."""
    folder.mkdir(parents=True, exist_ok=True)
    export_timm(trained.backbone, folder / BACKBONE_FILE, metadata={"task": trained.task})
    save_head(trained, folder)


def evaluate_frozen(
    model: Path | str,
    *,
    data: Path | str,
    out: Path | str,
    frozen: FrozenTasks | None = None,
    num_heads: int | None = None,
    network: str | None = None,
    num_channels: int | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    device: str = "auto",
) -> FrozenResults:
    """Score a model on tasks of frozen features, by default on all that `data` allow; images are encoded once.

    Writes `out`/TASK/result.json and `out`/TASK/pictures for each, `out`/summary.json and
    report.html; prints a table.

    Args:
        data: a data set of any of these tasks, or a folder of such data sets.
        frozen: which tasks, by which presets; None: all that `data` allow, as published.
        num_heads, network, num_channels, mean, std: of a checkpoint, as in `load_backbone`.

    Raises:
        UserError: a model, data or device that are not there or do not fit.
    """
    checkpoint = {
        "num_heads": num_heads, "network": network, "num_channels": num_channels, "mean": mean, "std": std,
    }  # fmt: skip
    with prepared("frozen tasks", model, Path(out), device, checkpoint) as (backbone, context):
        done = frozen_tasks.run(backbone, Path(data), frozen or FrozenTasks(), context)
    is_reported = report_frozen(Path(out), done.results, done.left_out, str(model))
    show_table(frozen_table(done, str(model)))
    say("  ".join(str(Path(out) / name) for name in ("summary.json", *([REPORT] if is_reported else []))))
    return done


@contextmanager
def prepared(
    title: str, model: Path | str, out: Path, device: str, checkpoint: dict[str, Any]
) -> Iterator[tuple[Backbone, EvalContext]]:
    """The loaded backbone and a context with a progress bar, after checks of folder and device."""
    require_writable(out)
    found_device = find_device(device)
    backbone = load_backbone(model, device=found_device, **checkpoint)
    for note in backbone.notes:
        say(note)
    with closing(PhaseProgressBar(title)) as report, working():
        yield backbone, EvalContext(out, found_device, report, str(model))


def frozen_table(done: FrozenResults, model: str) -> TextTable:
    """One row per task: its headline; tasks that were left out have none."""
    table = TextTable("task", "protocol", "metric", "%", title=f"frozen features: {model}", title_justify="left")
    for task, result in done.results.items():
        metric, value = next(iter(result.metrics.items()))
        table.add_row(task, result.protocol["name"], metric, f"{100 * value:.2f}")
    for task in done.left_out:
        table.add_row(task, "", "left out", "")
    return table


def table(result: Result) -> TextTable:
    protocol = result.protocol
    title = f"{result.task}, protocol {protocol['name']}: {result.model}"
    table = TextTable("metric", "%", title=title, title_justify="left")
    for name, value in result.metrics.items():
        table.add_row(name, f"{100 * value:.2f}")
    return table
