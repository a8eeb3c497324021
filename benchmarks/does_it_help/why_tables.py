"""Tables of the figures of benchmarks.does_it_help.why, in Markdown."""

import statistics
from collections.abc import Callable, Iterator
from typing import Any

from benchmarks.does_it_help.methods import METHODS
from benchmarks.does_it_help.results import Results
from selfpatch.output.markdown import as_markdown

KINDS = ("one object", "other object, same image", "same class, other image", "other class, other image")
STUDENTS = ("trained", "untrained", "teacher's copy", "other colors", "gray", "mean colors of patches", "place alone")


def figures_by_method(results: Results) -> Iterator[tuple[str, str, list[dict[str, Any]]]]:
    """Study, method, and the figures of its seeds."""
    for name, study in results.items():
        for method in METHODS:
            figures = [cell for run, cell in study["cells"].items() if run.rpartition("-")[0] == method]
            if figures:
                yield name, method, figures


def mean(figures: list[dict[str, Any]], *keys: str) -> float:
    values: list[Any] = figures
    for key in keys:
        values = [value[key] for value in values]
    return statistics.mean(values)


def loss_table(results: Results) -> str:
    """Share of what can be won in the patch loss, in %."""
    rows = [["study", "method", "seeds", *STUDENTS]]
    for study, method, figures in figures_by_method(results):
        if figures[0]["loss"]:
            shares = [f"{100 * mean(figures, 'loss', student):.0f}" for student in STUDENTS]
            rows.append([study, METHODS[method].says, str(len(figures)), *shares])
    return as_markdown(rows)


def similarity_table(results: Results) -> str:
    """Mean cosine of pairs of patches."""
    rows, before = [["study", "method", "seeds", *KINDS]], set()
    for study, method, figures in figures_by_method(results):
        if study not in before:
            values = [f"{mean(figures, 'similarity_before', kind):.2f}" for kind in KINDS]
            rows.append([study, "before training", str(len(figures)), *values])
            before.add(study)
        values = [f"{mean(figures, 'similarity', kind):.2f}" for kind in KINDS]
        rows.append([study, METHODS[method].says, str(len(figures)), *values])
    return as_markdown(rows)


def layer_table(results: Results) -> str:
    """Of every block: change of weights in %, and 1 less the cosine of a token before and after."""
    rows = [["study", "method", "seeds", "weights, block by block, in %", "tokens"]]
    for study, method, figures in figures_by_method(results):
        cells = []
        for kind, form in (("weights", lambda x: f"{100 * x:.1f}"), ("tokens", lambda x: f"{x:.2f}")):
            blocks = zip(*(cell["layers"][kind] for cell in figures), strict=True)
            cells.append(" ".join(form(statistics.mean(block)) for block in blocks))
        rows.append([study, METHODS[method].says, str(len(figures)), *cells])
    return as_markdown(rows)


WHY_TABLES: dict[str, Callable[[Results], str]] = {
    "why-loss": loss_table, "why-similarity": similarity_table, "why-layers": layer_table,
}  # fmt: skip
