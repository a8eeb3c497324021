"""The curves of a run: the objectives of the loss, the scores of the patches, signals of the targets."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SIGNALS = ("mutual_information", "prototypes_used")


def draw_curves(lines: list[dict[str, Any]], path: Path) -> None:
    """Draw the lines of metrics.jsonl to a PNG."""
    names = {name for line in lines for name in line}
    panels: list[tuple[str, list[str]]] = [
        ("loss", sorted(name for name in names if name.endswith("/loss"))),
        ("in-context segmentation", [name for name in ("in_context/mIoU", "in_context/aAcc") if name in names]),
        ("signals", sorted(name for name in names if name.endswith(SIGNALS))),
    ]
    panels = [(title, shown) for title, shown in panels if shown]
    if not panels:
        return
    # Here, as it takes a second, which a run should not wait for at its start.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2 * len(panels), 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (title, shown) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for name in shown:
            _draw(axes, lines, name)
        axes.set_title(title, fontsize=10, loc="left")
        axes.set_xlabel("step")
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(fontsize=8, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def _draw(axes: "Axes", lines: list[dict[str, Any]], name: str) -> None:
    points = [(line["step"], line[name]) for line in lines if name in line]
    marker = "o" if len(points) <= 20 else None
    axes.plot(
        *zip(*points, strict=True),
        label=name.removesuffix("/loss").removeprefix("in_context/").replace("_", " "),
        marker=marker,
        markersize=3,
    )
    if marker and "in_context" in name:
        axes.annotate(f"{points[-1][1]:.3f}", points[-1], textcoords="offset points", xytext=(4, 4), fontsize=8)
