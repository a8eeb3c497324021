"""`selfpatch compare`: results of several models and tasks in one table."""

from collections.abc import Sequence
from pathlib import Path

from rich.text import Text

from selfpatch.commands.report.evaluation_report import comparison_page
from selfpatch.errors import UserError
from selfpatch.evaluation.comparison import (
    Comparison,
    as_csv,
    as_markdown,
    best_of,
    find_results,
    percent,
    read_result,
    row_names,
)
from selfpatch.evaluation.comparison import compare as compare_results
from selfpatch.output.terminal import TextTable, fits, plain_text, show_table
from selfpatch.visualization.report.page import write_page

WRITERS = {".md": as_markdown, ".csv": as_csv}
PAGE = ".html"


def compare(
    results: Sequence[Path | str],
    *,
    metrics: Sequence[str] = (),
    split_protocols: bool = False,
    out: Path | str | None = None,
) -> Comparison:
    """Print results side by side, one row per model; and write them to `out`, a .html, .md or .csv file.

    Args:
        results: files result.json, or folders that have some below them.
        metrics: which numbers are shown; none: the headline of every task; "all".
        split_protocols: give each protocol of a task its own columns, instead of refusing the second.

    Raises:
        UserError: there is no result, or two of one task have different protocols or met different data.
    """
    out = None if out is None else Path(out)
    if out is not None and out.suffix not in (*WRITERS, PAGE):
        raise UserError(
            f"{out} must end in .html (a page to look at), .md (a table in Markdown) or .csv (numbers in full)"
        )
    files = dict.fromkeys(path for place in results for path in find_results(Path(place)))
    found = [(path, read_result(path)) for path in files]
    comparison = compare_results(found, metrics=metrics, split_protocols=split_protocols)
    table = as_table(comparison)
    show_table(table if fits(table) else as_long_table(comparison))
    if out is not None and out.suffix == PAGE:
        names = row_names(found)
        rows = [(names[path], result) for path, result in found]
        write_page(comparison_page(comparison, rows), out)
    elif out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(WRITERS[out.suffix](comparison), encoding="utf-8")
    return comparison


def as_table(comparison: Comparison) -> TextTable:
    """One row per model."""
    table = TextTable("model", caption="in %")
    for column in comparison.columns:
        table.add_column(f"{column.task}\n{column.protocol}\n{column.metric}", justify="right")
    for row, cells in zip(comparison.rows, cells_of(comparison), strict=True):
        table.add_row(row, *cells)
    return table


def as_long_table(comparison: Comparison) -> TextTable:
    """One row per task, protocol and metric, for where one row per model is too wide for the terminal."""
    table = TextTable(caption="in %")
    for name in ("task", "protocol", "metric"):
        table.add_column(name, overflow="fold")
    for row in comparison.rows:
        table.add_column(row, justify="right", overflow="fold")
    for column, cells in zip(comparison.columns, zip(*cells_of(comparison), strict=True), strict=True):
        table.add_row(*column, *cells)
    return table


def cells_of(comparison: Comparison) -> list[list[Text]]:
    """Cells of every row, the best of each column in bold."""
    best = best_of(comparison)
    return [
        [
            plain_text(percent(value), "bold" if value is not None and value == top else "")
            for value, top in zip(values, best, strict=True)
        ]
        for values in comparison.values
    ]
