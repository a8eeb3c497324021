"""Tables of results in Markdown."""

import statistics
from typing import Any

import numpy as np

from benchmarks.does_it_help.methods import BASE, METHODS, START
from selfpatch.evaluation.segmentation.intervals import (
    Difference,
    difference_of_overlaps,
    difference_of_scores,
    seeds_needed,
)
from selfpatch.evaluation.segmentation.overlaps import unpack
from selfpatch.output.markdown import as_markdown, mean_and_spread, with_interval

HEADLINES = {
    "in-context 1": "mIoU",
    "in-context 1/8": "mIoU",
    "in-context 1/64": "mIoU",
    "linear": "mIoU",
    "overclustering": "mIoU/K=50",
    "knn": "top-1",
    "davis": "J&F-Mean",
    "lost": "CorLoc",
    "semantic-fpn": "mIoU",
    "mask-rcnn": "box/AP",
}
EFFECT = 0.005  # a difference that should be told from none


def by_method(study: dict[str, Any]) -> dict[str, dict[int, dict[str, Any]]]:
    """method -> seed -> record, methods in the order of the table of methods."""
    found: dict[str, dict[int, dict[str, Any]]] = {}
    for record in study["cells"].values():
        found.setdefault(record["method"], {})[record["seed"]] = record
    order = [START, *METHODS]
    return {method: dict(sorted(found[method].items())) for method in sorted(found, key=order.index)}


def columns_of(study: dict[str, Any]) -> list[str]:
    scored = {name for record in study["cells"].values() for name in record["scores"]}
    return [name for name in HEADLINES if name in scored]


def headline(record: dict[str, Any], column: str) -> float | None:
    score = record["scores"].get(column)
    return None if score is None else score.get(HEADLINES[column], next(iter(score.values())))


def score_table(study: dict[str, Any]) -> str:
    """Mean and standard deviation over seeds, in %, and what a run cost."""
    columns = columns_of(study)
    rows = [["method", "seeds", *columns, "CPU minutes"]]
    for method, records in by_method(study).items():
        cells = []
        for column in columns:
            values = [value for record in records.values() if (value := headline(record, column)) is not None]
            cells.append(mean_and_spread(values))
        minutes = [record["training"]["cpu_seconds"] / 60 for record in records.values() if "training" in record]
        cost = f"{statistics.mean(minutes):.1f}" if minutes else ""
        rows.append([says(method), str(len(records)), *cells, cost])
    return as_markdown(rows)


def difference_table(study: dict[str, Any]) -> str:
    """Paired difference to the base in points, its 95 % interval, and how many seeds a difference of 0.5 needs."""
    methods = by_method(study)
    rows = [["method against DINO", "seeds", *columns_of(study), "seeds that 0.5 needs (in-context 1)"]]
    for method in methods:
        if method in (BASE, START):
            continue
        found = {column: paired(methods, method, column) for column in columns_of(study)}
        known = [difference for difference in found.values() if difference]
        if not known:
            continue
        first = found.get("in-context 1")
        needed = str(seeds_needed(first.spread, EFFECT)) if first and first.spread is not None else ""
        rows.append([says(method), str(max(d.num_seeds for d in known)), *map(interval, found.values()), needed])
    return as_markdown(rows) if len(rows) > 1 else ""


def paired(methods: dict[str, dict[int, dict[str, Any]]], method: str, column: str) -> Difference | None:
    """Difference over the seeds that both have; None if there is none."""
    base, other = methods.get(BASE, {}), methods[method]
    seeds = [seed for seed in other if seed in base and column in other[seed]["scores"].keys() & base[seed]["scores"]]
    if not seeds:
        return None
    scores = [[of[seed]["scores"][column] for seed in seeds] for of in (other, base)]
    if all("overlaps" in score for of_method in scores for score in of_method):
        first, second = (np.stack([unpack(score["overlaps"]) for score in of_method]) for of_method in scores)
        return difference_of_overlaps(first, second)
    values = [np.array([headline(of[seed], column) for seed in seeds], float) for of in (other, base)]
    return difference_of_scores(*values)


def interval(difference: Difference | None) -> str:
    if difference is None:
        return ""
    return with_interval(difference.mean, difference.low, difference.high)


def says(method: str) -> str:
    return "before training" if method == START else METHODS[method].says


def study_tables(study: dict[str, Any]) -> str:
    """Both tables, as they stand in a document."""
    return f"{score_table(study)}\n{difference_table(study)}"
