"""Bar chart of the score of every class."""

from pathlib import Path

CLASSES_PER_COLUMN = 38  # 150 classes take four columns
BAR, TRACK, INK, FAINT_INK = "#4e79a7", "#eeeeee", "#202020", "#6e6e6e"


def write_class_bars(
    metrics: dict[str, float], out_dir: Path, *, score: str = "IoU", mean: str = "mIoU", file: str = "class_iou.png"
) -> Path:
    """OUT_DIR/FILE: the numbers of `metrics` called SCORE/NAME, best first, and the one called `mean` as a line."""
    out_dir.mkdir(parents=True, exist_ok=True)
    prefix = f"{score}/"
    bars = [(name.removeprefix(prefix), value) for name, value in metrics.items() if name.startswith(prefix)]
    bars.sort(key=lambda bar: -bar[1])
    num_columns = -(-len(bars) // CLASSES_PER_COLUMN)
    per_column = -(-len(bars) // num_columns)

    # Here, as it takes a second, which a run should not wait for at its start.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6 * num_columns, 1.1 + 0.24 * per_column), layout="constrained")
    FigureCanvasAgg(figure)
    columns = figure.subplots(1, num_columns, squeeze=False)[0]
    for column, axes in enumerate(columns):
        shown = bars[column * per_column : (column + 1) * per_column]
        places = range(len(shown))
        axes.barh(places, [1.0] * len(shown), height=0.72, color=TRACK)
        axes.barh(places, [value for _, value in shown], height=0.72, color=BAR)
        for place, (_, value) in zip(places, shown, strict=True):
            axes.text(1.02, place, f"{100 * value:.1f}", va="center", fontsize=8, color=FAINT_INK)
        # A dollar sign in a name is no formula.
        axes.set_yticks(places, [shortened(name).replace("$", r"\$") for name, _ in shown], fontsize=8, color=INK)
        axes.axvline(metrics[mean], color=INK, linewidth=0.8, linestyle=(0, (3, 2)))
        axes.set_ylim(per_column - 0.4, -0.6)
        axes.set_xlim(0, 1.12)
        axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "25", "50", "75", "100"], fontsize=8, color=FAINT_INK)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
    what = score.replace("/", " ")
    of_all = "their mean" if mean == score else mean
    title = f"{what} of each class, %; dashed: {of_all} {100 * metrics[mean]:.1f}"
    figure.suptitle(title, x=0.01, ha="left", fontsize=10, color=INK)
    path = out_dir / file
    figure.savefig(path, dpi=120)
    return path


def shortened(name: str, length: int = 24) -> str:
    return name if len(name) <= length else f"{name[: length - 1]}…"
