"""`selfpatch evaluate`: score the frozen patches of a model; result.json, pictures and a table."""

from contextlib import closing
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from selfpatch.backbones.pretrained import load_backbone
from selfpatch.commands.hardware import find_device
from selfpatch.errors import unknown_name, working
from selfpatch.evaluation.protocols import TASKS
from selfpatch.evaluation.result import Result
from selfpatch.evaluation.task import EvalContext
from selfpatch.evaluation.tasks import run_task
from selfpatch.output.atomic_files import require_writable
from selfpatch.output.printable import printable
from selfpatch.output.progress import PhaseProgressBar, say


def evaluate(
    model: Path | str,
    *,
    task: str = "in-context-segmentation",
    data: Path | str,
    out: Path | str,
    protocol: Any = None,
    num_heads: int | None = None,
    network: str | None = None,
    mean: tuple[float, float, float] | None = None,
    std: tuple[float, float, float] | None = None,
    device: str = "auto",
) -> Result:
    """Score a model on a task; writes `out`/result.json and `out`/pictures, and prints a table.

    Args:
        model: anything `load_backbone` takes: a run folder, an exported file, an original checkpoint, timm:NAME.
        protocol: the task's settings, or the name of a preset; None: the published ones.
        num_heads, network, mean, std: of a checkpoint, as in `load_backbone`.

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
    require_writable(Path(out))
    found_device = find_device(device)
    backbone = load_backbone(model, device=found_device, num_heads=num_heads, network=network, mean=mean, std=std)
    for note in backbone.notes:
        say(note)
    with closing(PhaseProgressBar(task)) as report, working():
        context = EvalContext(Path(out), found_device, report, str(model))
        result = run_task(task, backbone, Path(data), protocol, context)
    Console().print(table(result))
    for note in result.notes[len(backbone.notes) :]:  # those of the model have been printed
        say(note)
    written = [str(path) for path in (Path(out) / "result.json", Path(out) / "pictures") if path.exists()]
    say("  ".join(written))
    return result


def table(result: Result) -> Table:
    protocol = result.protocol
    title = f"{result.task}, protocol {protocol['name']}: {result.model}"
    table = Table("metric", "%", title=escape(printable(title, keep="\\")), title_justify="left")
    for name, value in result.metrics.items():
        table.add_row(escape(printable(name, keep="\\")), f"{100 * value:.2f}")
    return table
