"""Signals of healthy and of deliberately broken runs: the figure that the thresholds of health.py come from.

    python -m benchmarks.health OUT --steps 200 --figure docs/pictures/health.png

Made-up scenes at the size of the demo. A line per run: the state that was said, and at which step.
"""

import argparse
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from rich.console import Console
from rich.table import Table

from selfpatch.backbones.backbone import Tokens
from selfpatch.backbones.vit import ViT
from selfpatch.commands.pretrain import pretrain
from selfpatch.demo.scenes import write_scenes
from selfpatch.objectives.self_distillation import SelfDistillation
from selfpatch.output.metric_logger import read_metrics

SMALL = {
    "backbone.name": "vit_tiny_patch16_224", "backbone.patch_size": 8, "backbone.embed_dim": 96, "backbone.depth": 4,
    "backbone.num_heads": 3, "crops.global_size": 48, "crops.local_size": 24,
}  # fmt: skip
CONTRASTIVE = {
    "backbone.drop_path": 0.0, "crops.num_local": 0, "crops.local_size": None, "objectives.moco_v3.hidden_dim": 256,
    "optim.lr": 5e-4, "optim.lr_scaling": "none", "optim.epochs": None, "optim.warmup_epochs": 1.0,
}  # fmt: skip


class Case(NamedTuple):
    """A run: its recipe, settings, what is broken inside of the program, and the symptom to be named."""

    recipe: str = "demo"
    settings: dict[str, Any] = {}  # noqa: RUF012
    broken: Callable[[], Any] = ExitStack
    images: str = "scenes"
    expected: str = ""


def of_both(setting: str, value: Any) -> dict[str, Any]:
    """A setting of self-distillation, of the image-level and the patch-level objective."""
    return {f"objectives.{name}.distillation.{setting}": value for name in ("dino", "selfpatch")}


@contextmanager
def one_prototype() -> Iterator[None]:
    def targets(self: SelfDistillation, teacher_logits: torch.Tensor, step: int) -> torch.Tensor:
        return torch.zeros_like(teacher_logits).index_fill_(-1, torch.tensor([0]), 1.0)

    with patch.object(SelfDistillation, "targets", targets):
        yield


@contextmanager
def patches_alike() -> Iterator[None]:
    forward = ViT.forward

    def mean(self: ViT, images: torch.Tensor, masks: torch.Tensor | None = None) -> Tokens:
        tokens = forward(self, images, masks)
        return tokens._replace(patch_tokens=tokens.patch_tokens.mean(dim=1, keepdim=True) + 0.01 * tokens.patch_tokens)

    with patch.object(ViT, "forward", mean):
        yield


HEALTHY = {
    "demo": Case(),
    "dino-small": Case("dino-small", SMALL),
    "dino-selfpatch-small": Case("dino-selfpatch-small", SMALL),
    "dino-ibot-small": Case("dino-ibot-small", SMALL),
    "moco-v3": Case("moco-v3", SMALL | CONTRASTIVE),
}
BROKEN = {
    "centering off": Case(
        settings=of_both("centering", "mean") | of_both("center_momentum", 0.9999999), expected="one prototype"
    ),
    "equal temperatures": Case(
        settings=of_both("teacher_temperature", 0.1) | of_both("warmup_teacher_temperature", 0.1),
        expected="uniform targets",
    ),
    "constant images": Case(images="constant", expected="blank images"),
    "no moving average": Case(
        settings={"teacher.momentum": 0.0, "teacher.momentum_end": 0.0}, expected="no moving average"
    ),
    # Derived for the demo: 1e-3 to 2e-3, by the batch.
    "learning rate x 100": Case(settings={"optim.lr": 0.2}, expected="weights run away"),
    "one prototype": Case(broken=one_prototype, expected="one prototype"),
    "patches alike": Case(broken=patches_alike, expected="patches alike"),
}
CASES = HEALTHY | BROKEN
SIGNALS = (
    "dino/mutual_information", "dino/mean_teacher_entropy", "teacher/distance", "crops/std", "patches/similarity",
    "patches/similarity_across", "patches/place", "images/spread",
)  # fmt: skip


def run_case(case: Case, out: Path, images: Path, settings: dict[str, Any]) -> str:
    """Train; returns all that was printed."""
    printed = StringIO()
    with case.broken(), redirect_stdout(printed):
        pretrain(images, out, recipe=case.recipe, settings=case.settings | settings)
    return printed.getvalue()


def constant_images(folder: Path, count: int, *, size: int) -> None:
    folder.mkdir(parents=True)
    for index in range(count):
        Image.new("RGB", (size, size), (index % 256, 128, 60)).save(folder / f"{index:04}.png")


def write_images(out: Path, count: int) -> dict[str, Path]:
    scenes, constant = out / "scenes", out / "constant"
    if not constant.exists():
        write_scenes(scenes, num_unlabeled=count, num_train=2, num_val=2, size=72, seed=0)
        constant_images(constant, count, size=72)
    return {"scenes": scenes / "images", "constant": constant}


def draw(runs: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """A panel per signal, healthy runs in gray, each broken one in a color."""
    figure = Figure(figsize=(16, 7), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, signal in zip(figure.subplots(2, 4).flat, SIGNALS, strict=True):
        for name, lines in runs.items():
            points = [(line["step"], line[signal]) for line in lines if signal in line]
            if points:
                style = {"color": "0.6", "linewidth": 3} if name in HEALTHY else {}
                axes.plot(*zip(*points, strict=True), label=name, **style)
        axes.set_title(signal, fontsize=10, loc="left")
        axes.grid(alpha=0.25)
    lines = {label: line for axes in figure.axes for line, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(lines.values(), lines, loc="outside right upper", frameon=False)
    figure.savefig(path, dpi=90)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--images", type=int, default=600)
    parser.add_argument("--figure", type=Path)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    arguments = parser.parse_args()

    images = write_images(arguments.out, arguments.images)
    settings = {"optim.steps": arguments.steps, "optim.batch_size": arguments.batch_size, "run.device": "cpu"}
    settings |= {"run.save_every": arguments.steps, "efficiency.num_workers": 0}
    table = Table("run", "expected", "said, at step")
    for name in arguments.cases:
        case, out = CASES[name], arguments.out / name.replace(" ", "-")
        if not (out / "printed.txt").exists():
            printed = run_case(case, out, images[case.images], settings)
            (out / "printed.txt").write_text(printed)
        said, step = [], "0"
        for line in (out / "printed.txt").read_text().splitlines():
            step = found.group(1) if (found := re.match(r"step (\d+)/", line)) else step
            if found := re.match(r"health (\w+)(?: \(([\w ]+)\))?", line):
                said.append(f"{found.group(1)} {found.group(2) or ''} ({step})")
        table.add_row(name, case.expected or "nothing", "; ".join(said) or "nothing")
        Console(width=120).print(table.rows and f"{name}: {'; '.join(said) or 'nothing'}")
    Console(width=120).print(table)
    if arguments.figure:
        runs = {name: read_metrics(arguments.out / name.replace(" ", "-") / "metrics.jsonl") for name in CASES}
        draw(runs, arguments.figure)


if __name__ == "__main__":
    main()
