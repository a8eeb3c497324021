"""Lines of metrics.jsonl as charts: what belongs together on one scale, the rest one by one."""

from collections.abc import Callable, Sequence
from typing import Any

from selfpatch.visualization.report import blocks
from selfpatch.visualization.report.blocks import Series

# Of a longer run the least and the greatest value of each part is kept, so that no spike is lost.
MAX_POINTS = 600

# Title, which names, in percent, what it means.
GROUPS: tuple[tuple[str, Callable[[str], bool], bool, str], ...] = (
    ("Loss", lambda name: name == "loss" or name.endswith("/loss"), False, ""),
    (
        "In-context segmentation",
        lambda name: name.startswith("in_context/"),
        True,
        "Nearest labeled patches; nothing is trained on labels.",
    ),
    (
        "Targets: mutual information",
        lambda name: name.endswith("mutual_information"),
        False,
        "What targets tell about images or patches. Near 0 they tell nothing.",
    ),
    (
        "Targets: prototypes used",
        lambda name: name.endswith("prototypes_used"),
        True,
        "Few of them: targets are all alike.",
    ),
    (
        "Similarity of patches",
        lambda name: "similarity" in name,
        False,
        "Cosine. Near 1 all patches of an image are alike.",
    ),
)  # fmt: skip
LEFT_OUT = ("step", "epoch")


def main_charts(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Losses, scores and signals, each group that the run has."""
    found = series_of(lines)
    groups = [
        (title, [one for one in found if belongs(one.name)], percent, note) for title, belongs, percent, note in GROUPS
    ]
    return [
        blocks.chart(title, shortened(shown), percent=percent, note=note)
        for title, shown, percent, note in groups
        if shown
    ]


def other_charts(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """All other numbers of the log, one chart each."""
    return [
        blocks.chart(one.name, [one])
        for one in series_of(lines)
        if not any(belongs(one.name) for _, belongs, _, _ in GROUPS)
    ]


def series_of(lines: list[dict[str, Any]]) -> list[Series]:
    """Every number of the log, in the order of its first line."""
    names = dict.fromkeys(name for line in lines for name in line if name not in LEFT_OUT)
    found = []
    for name in names:
        points = [(line["step"], blocks.finite(line[name])) for line in lines if is_number(line.get(name))]
        if points:
            kept = thinned(points)
            found.append(Series(name, [step for step, _ in kept], [value for _, value in kept]))
    return found


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def thinned(points: Sequence[tuple[int, float | None]]) -> list[tuple[int, float | None]]:
    """At most MAX_POINTS, the first and the last among them."""
    if len(points) <= MAX_POINTS:
        return list(points)
    num_parts = MAX_POINTS // 2 - 1
    inner, kept = points[1:-1], [points[0]]
    for part in range(num_parts):
        chunk = inner[len(inner) * part // num_parts : len(inner) * (part + 1) // num_parts]
        numbers = [(value, step) for step, value in chunk if value is not None]
        ends = {min(numbers), max(numbers)} if numbers else set()
        kept += sorted((step, value) for value, step in ends) or chunk[:1]
    return [*kept, points[-1]]


def shortened(series: list[Series]) -> list[Series]:
    """Without the end of their names that all have: in a chart of losses `/loss` tells nothing."""
    endings = {one.name.rpartition("/")[2] for one in series}
    starts = {one.name.partition("/")[0] for one in series}
    if len(series) > 1 and len(endings) == 1:
        return [one._replace(name=one.name.rpartition("/")[0] or one.name) for one in series]
    if len(series) > 1 and len(endings) == len(series) and len(starts) == 1:
        return [one._replace(name=one.name.rpartition("/")[2]) for one in series]
    losses = [one.name.endswith("/loss") or one.name == "loss" for one in series]
    if all(losses):
        return [one._replace(name="whole loss" if one.name == "loss" else one.name) for one in series]
    return series
