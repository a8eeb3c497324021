"""The table and the figures of benchmarks.evidence, out of its summary."""

from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from selfpatch.visualization.sheet import Panel, draw_sheet

STAGES = ("start", "middle", "end")


def markdown(summary: dict[str, Any]) -> str:
    lines = [
        f"Device: {summary['device']}; torch {summary['versions']['torch']}; one seed ({summary['seed']}). mIoU in %: "
        "at the start (random weights), in the middle, at the end.",
        "",
        "| method | in-context | linear | images/s | waiting for data | memory, GB | steps | images seen | minutes |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for method, figures in summary["methods"].items():
        scores = list(figures["in_context"].values())
        in_context = [scores[0], *([scores[len(scores) // 2], scores[-1]] if len(scores) > 2 else scores[1:])]
        linear = [figures["linear"][stage] for stage in STAGES if stage in figures["linear"]]
        lines.append(
            f"| {method}: {figures['says']} | {arrows(in_context)} | {arrows(linear)} | "
            f"{figures['images_per_second']:.0f} | {figures['data_wait']:.0%} | {figures['memory_mb'] / 1024:.1f} | "
            f"{figures['steps']} of {figures['num_steps']} | {figures['images_seen']:,} | "
            f"{figures['training_seconds'] / 60:.1f} |"
        )
    return "\n".join(lines) + "\n"


def arrows(scores: list[float]) -> str:
    return " -> ".join(f"{100 * score:.1f}" for score in scores)


def draw_curves(methods: dict[str, Any], path: Path) -> None:
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, 2)
    for method, figures in methods.items():
        in_context, linear = figures["in_context"], figures["linear"]
        places = dict(zip(STAGES, (0, figures["num_steps"] // 2, figures["num_steps"]), strict=True))
        axes[0].plot(
            [int(step) for step in in_context], [100 * s for s in in_context.values()], label=method, marker="o"
        )
        axes[1].plot([places[stage] for stage in linear], [100 * s for s in linear.values()], label=method, marker="o")
    for panel, title in zip(axes, ("in-context segmentation", "linear segmentation"), strict=True):
        panel.set_title(title, fontsize=10, loc="left")
        panel.set_xlabel("step")
        panel.set_ylabel("mIoU, %")
        panel.grid(alpha=0.25)
        panel.spines[["top", "right"]].set_visible(False)
        panel.legend(fontsize=8, frameon=False)
    figure.savefig(path, dpi=120)


def draw_together(rows: dict[str, list[Path]], title: str, path: Path, width: int = 640) -> None:
    """A row a method, a column a stage."""

    def panel(file: Path, caption: str) -> Panel:
        with Image.open(file) as sheet:
            size = (width, round(sheet.height * width / sheet.width))
            return Panel(sheet.convert("RGB").resize(size, Image.Resampling.LANCZOS), caption)

    panels = [
        [panel(file, f"{method}: {stage}") for file, stage in zip(files, STAGES, strict=True)]
        for method, files in rows.items()
    ]
    draw_sheet(title, "A row a method; random weights, half of the steps, all steps.", panels).save(path)
