"""Results side by side: one row per model, one column per task and protocol; two protocols never share a column."""

import csv
import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from selfpatch.config.io import differences
from selfpatch.errors import UserError
from selfpatch.evaluation.result import Result, current_names
from selfpatch.output.printable import printable
from selfpatch.output.text_files import markdown_text, spreadsheet_cell

LARGEST_RESULT = 50_000_000  # bytes; a result of 80 classes has a few thousand

# Results of earlier versions do not say of which metrics less is better: these, and overclustering's spread/K=....
FORMER_LOWER_IS_BETTER = ("J-Decay", "F-Decay")


class Column(NamedTuple):
    task: str
    protocol: str  # its name in the header
    metric: str

    def __str__(self) -> str:
        return f"{self.task} ({self.protocol}) {self.metric}"


class Comparison(NamedTuple):
    rows: list[str]  # models
    columns: list[Column]
    values: list[list[float | None]]  # of every row, in the order of the columns; None: not scored
    lower_is_better: set[Column]


def find_results(place: Path) -> list[Path]:
    """The result.json that `place` is, has, or has below it.

    Raises:
        UserError: there is none.
    """
    if place.is_file():
        return [place]
    found = sorted(place.glob("**/result.json")) if place.is_dir() else []
    if not found:
        raise UserError(
            f"{place} is no result and has none below it; give a result.json, or the folder that `selfpatch evaluate` "
            "wrote to (--out)"
        )
    return found


def read_result(path: Path) -> Result:
    """Read a result.json of any version.

    Raises:
        UserError: it is not what `selfpatch evaluate` writes.
    """
    try:
        if path.stat().st_size > LARGEST_RESULT:
            raise UserError(f"it has {path.stat().st_size / 1e6:.0f} MB")
        content = json.loads(path.read_text(encoding="utf-8"))
        content["protocol"] = current_names(content["protocol"])
        content.setdefault("lower_is_better", former_lower_is_better(content["task"], content["metrics"]))
        result = Result(**content)
        words = [result.task, result.protocol["name"], *result.lower_is_better]
        numbers = list(result.metrics.values())
        if not (numbers and are_all(str, words) and are_all(int | float, numbers)):
            raise UserError("its task, protocol or metrics are not of the right kind")
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{path} is not a result of `selfpatch evaluate`: {error}; give the result.json that it wrote"
        ) from error
    return result


def are_all(kind: Any, values: Iterable[Any]) -> bool:
    return all(isinstance(value, kind) for value in values)


def former_lower_is_better(task: str, metrics: Iterable[str]) -> list[str]:
    """Names of metrics of which less is better, for a result that does not list them."""
    return [
        name
        for name in metrics
        if (task == "video-segmentation" and name in FORMER_LOWER_IS_BETTER)
        or (task == "overclustering" and name.startswith("spread/K="))
    ]


def compare(
    results: Sequence[tuple[Path, Result]], *, metrics: Sequence[str] = (), split_protocols: bool = False
) -> Comparison:
    """Arrange results as a table.

    Args:
        metrics: which numbers are shown; none: the headline of every task. "all" shows all of them.
        split_protocols: give each protocol of a task its own columns, numbered, instead of refusing the second.

    Raises:
        UserError: two results of one task have different protocols, or met different data; or no result has a metric.
    """
    # 1. One protocol per task, or one each.
    protocols: dict[str, list[tuple[Path, dict[str, Any]]]] = {}
    place: dict[Path, int] = {}
    for path, result in results:
        known = protocols.setdefault(result.task, [])
        place[path] = next((i for i, (_, other) in enumerate(known) if other == result.protocol), len(known))
        if place[path] < len(known):
            continue
        if known and not split_protocols:
            lines = "\n  ".join(differences(known[0][1], result.protocol)[:12])
            raise UserError(
                f"{known[0][0]} and {path} score {result.task} by different protocols, and their numbers cannot stand "
                f"in one column:\n  {lines}\nScore them alike, compare them separately, or give each its own column "
                "(--split-protocols)"
            )
        known.append((path, result.protocol))

    # 2. Columns, in the order in which results come.
    columns: list[Column] = []
    cells: dict[tuple[str, Column], float] = {}
    lower_is_better: set[Column] = set()
    names = row_names(results)
    for path, result in results:
        shown = list(result.metrics) if "all" in metrics else metrics or list(result.metrics)[:1]
        several = len(protocols[result.task]) > 1
        protocol = f"{result.protocol['name']} #{place[path] + 1}" if several else result.protocol["name"]
        for metric in shown:
            if metric in result.metrics:
                column = Column(result.task, protocol, metric)
                if column not in columns:
                    columns.append(column)
                if metric in result.lower_is_better:
                    lower_is_better.add(column)
                cells[names[path], column] = result.metrics[metric]
    if not columns:
        known_metrics = sorted({name for _, result in results for name in result.metrics if "/" not in name})
        raise UserError(f"no result has a metric {', '.join(metrics)}; there are: {', '.join(known_metrics)}")
    rows = list(dict.fromkeys(names.values()))
    values = [[cells.get((row, column)) for column in columns] for row in rows]
    return Comparison(rows, columns, values, lower_is_better)


def row_names(results: Sequence[tuple[Path, Result]]) -> dict[Path, str]:
    """Name of the row of each result.

    The model, with the fingerprint of its weights where one name stands for several, and the folder where one model has
    several results of one task and protocol.
    """
    weights: dict[str, set[str]] = {}
    for _, result in results:
        weights.setdefault(result.model, set()).add(weights_of(result))
    names = {
        path: f"{result.model} ({weights_of(result)})" if len(weights[result.model]) > 1 else result.model
        for path, result in results
    }
    seen: dict[tuple[str, str, str], Path] = {}
    twice: set[str] = set()
    for path, result in results:
        key = names[path], result.task, json.dumps(result.protocol, sort_keys=True)
        if seen.setdefault(key, path) != path:
            twice.add(names[path])
    names = {path: f"{name} [{path.parent}]" if name in twice else name for path, name in names.items()}
    return {path: printable(name, keep="\\") for path, name in names.items()}


def weights_of(result: Result) -> str:
    model = result.details.get("model")
    return str(model.get("fingerprint", "unknown")) if isinstance(model, dict) else "unknown"


def as_markdown(comparison: Comparison) -> str:
    """A table of percentages, the best of every column in bold."""
    header = [markdown_text(str(column)) for column in comparison.columns]
    lines = [["model", *header], ["---", *["---:"] * len(header)]]
    best = best_of(comparison)
    for row, values in zip(comparison.rows, comparison.values, strict=True):
        cells = [
            f"**{percent(value)}**" if value is not None and value == top else percent(value)
            for value, top in zip(values, best, strict=True)
        ]
        lines.append([markdown_text(row), *cells])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def as_csv(comparison: Comparison) -> str:
    """Fractions in [0, 1] with all their digits; empty where a model was not scored."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["model", *(spreadsheet_cell(str(column)) for column in comparison.columns)])
    for row, values in zip(comparison.rows, comparison.values, strict=True):
        writer.writerow([spreadsheet_cell(row), *("" if value is None else repr(value) for value in values)])
    return text.getvalue()


def best_of(comparison: Comparison) -> list[float | None]:
    """The best value of every column with several: the highest, or the lowest where less is better."""
    best = []
    for column, values in zip(comparison.columns, zip(*comparison.values, strict=True), strict=True):
        known = [value for value in values if value is not None]
        choose = min if column in comparison.lower_is_better else max
        best.append(choose(known) if len(known) > 1 else None)
    return best


def percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.2f}"
