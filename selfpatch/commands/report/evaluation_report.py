"""Pages of results: one evaluation, the frozen tasks of one model, and several models side by side."""

from collections.abc import Sequence
from pathlib import Path

from selfpatch.commands.report.picture_blocks import pictures_section
from selfpatch.commands.report.run_report import flat, written
from selfpatch.evaluation.comparison import Comparison, best_of, percent
from selfpatch.evaluation.result import Result
from selfpatch.output.metric_logger import read_metrics
from selfpatch.visualization.report import blocks
from selfpatch.visualization.report.blocks import Block, Cell, Page, Section
from selfpatch.visualization.report.curves import main_charts, other_charts
from selfpatch.visualization.report.earlier_pictures import MAX_PAGE_BYTES, frames_of_folder
from selfpatch.visualization.report.page import REPORT, page_or_warning, write_page

# Metrics of single classes are called SCORE/CLASS; fewer of them are no chart.
MIN_CLASSES = 2


def report_evaluation(out: Path, result: Result) -> bool:
    """Write OUT/report.html of one evaluation; returns False, after a warning, if that failed."""
    return page_or_warning(lambda: write_page(evaluation_page(out, result), out / REPORT), out / REPORT)


def report_frozen(out: Path, results: dict[str, Result], left_out: dict[str, str], model: str) -> bool:
    """Write OUT/report.html of the frozen tasks of one model; returns False, after a warning, if that failed."""
    return page_or_warning(
        lambda: write_page(frozen_page(out, results, left_out, model), out / REPORT), out / REPORT
    )  # fmt: skip


def evaluation_page(out: Path, result: Result) -> Page:
    pictures, assets = pictures_section(frames_of_folder(out / "pictures"))
    lines = read_metrics(out / "metrics.jsonl")
    charts = [*main_charts(lines), *other_charts(lines)]
    sections = [
        Section("Scores", [headlines(result), metrics_table(result)]),
        *([Section("Classes", classes)] if (classes := class_bars([(result.model, result)])) else []),
        *pictures,
        *([Section("Training of the head", [blocks.charts(charts)])] if charts else []),
        *protocol_sections(result),
    ]
    title = result.task.replace("-", " ")
    return Page("Evaluation", title[:1].upper() + title[1:], f"{result.model} on {result.data}", sections, assets)


def headlines(result: Result) -> Block:
    """The task's own number first, and up to two others."""
    shown = [(name, value) for name, value in result.metrics.items() if "/" not in name][:3]
    seconds = f"{result.seconds / 60:.1f} min" if result.seconds >= 60 else f"{result.seconds:.0f} s"
    return blocks.tiles(
        *(blocks.tile(name, f"{100 * value:.1f} %") for name, value in shown),
        blocks.tile("Protocol", str(result.protocol["name"])),
        blocks.tile("Time", seconds),
    )


def metrics_table(result: Result) -> Block:
    rows = [
        [name, Cell(percent(value), blocks.finite(value)), "less is better" if name in result.lower_is_better else ""]
        for name, value in result.metrics.items()
    ]
    columns = ["metric", "%", ""] if result.lower_is_better else ["metric", "%"]
    name = f"All numbers of {result.task}"
    if not result.lower_is_better:
        return blocks.table(columns, [row[:2] for row in rows], name=name, numeric=1)
    return blocks.table(columns, rows, name=name)


def class_bars(results: Sequence[tuple[str, Result]]) -> list[Block]:
    """One chart per score of single classes, best first; one bar per model."""
    scores: dict[str, dict[str, dict[str, float]]] = {}  # score -> class -> model -> value
    for model, result in results:
        for name, value in result.metrics.items():
            score, _, category = name.partition("/")
            if category and name not in result.lower_is_better and not category.startswith("K="):
                scores.setdefault(score, {}).setdefault(category, {})[model] = value
    shown = []
    for score, by_class in scores.items():
        if len(by_class) < MIN_CLASSES:
            continue
        order = sorted(by_class, key=lambda name: -sum(by_class[name].values()) / len(by_class[name]))
        models = list(dict.fromkeys(model for model, _ in results))
        series = {model: [by_class[name].get(model) for name in order] for model in models}
        shown.append(blocks.bars(f"{score} of each class, %", order, series))
    return shown


def protocol_sections(result: Result) -> list[Section]:
    differs = [str(line) for line in result.details.get("differs") or ()]
    notes = [Section("Notes", [blocks.texts([*result.notes, *differs])])] if result.notes or differs else []
    settings = [[name, Cell(written(value), blocks.finite(value))] for name, value in flat(result.protocol).items()]
    details = {name: value for name, value in result.details.items() if name != "differs"}
    choices = [[name, Cell(written(value), blocks.finite(value))] for name, value in flat(details).items()]
    rows = blocks.table(["setting", "value"], settings, name="Settings of the protocol")
    more = [blocks.table(["choice or fact", "value"], choices, name="Choices within the protocol")] if choices else []
    lead = "Results are compared only if all of these are the same."
    versions = ", ".join(f"{name} {version}" for name, version in result.versions.items())
    return [*notes, Section("Protocol", [rows, *more, blocks.texts([versions])], lead, closed=True)]


def frozen_page(out: Path, results: dict[str, Result], left_out: dict[str, str], model: str) -> Page:
    rows: list[list[Cell | str]] = []
    for task, result in results.items():
        metric, value = next(iter(result.metrics.items()))
        rows.append([task, str(result.protocol["name"]), metric, Cell(percent(value), value)])
    rows += [[task, "", f"left out: {reason}", Cell("")] for task, reason in left_out.items()]
    table = blocks.table(["task", "protocol", "metric", "%"], rows, name="Frozen tasks", numeric=1)
    sections, assets = [Section("Scores", [table])], {}
    room = MAX_PAGE_BYTES
    for number, (task, result) in enumerate(results.items()):
        pictures, more = pictures_section(
            frames_of_folder(out / task / "pictures"), room // (len(results) - number), prefix=f"{task}-"
        )  # fmt: skip
        room -= sum(map(len, more.values()))
        assets |= more
        shown = [*class_bars([(result.model, result)]), *(block for section in pictures for block in section.blocks)]
        sections.append(Section(task, [headlines(result), *shown], closed=number > 0))
        sections += [section._replace(title=f"{section.title} of {task}") for section in protocol_sections(result)]
    return Page("Evaluation", "Frozen features", model, sections, assets)


def comparison_page(comparison: Comparison, results: Sequence[tuple[str, Result]]) -> Page:
    """
    Args:
        results: what is compared, with the name of the row that each belongs to.
    """
    best = best_of(comparison)
    rows = [
        [
            row,
            *(
                Cell(percent(value), blocks.finite(value), is_best=value is not None and value == top)
                for value, top in zip(values, best, strict=True)
            ),
        ]
        for row, values in zip(comparison.rows, comparison.values, strict=True)
    ]
    heads = [f"{column.metric}\n{column.task}\n{column.protocol}" for column in comparison.columns]
    table = blocks.table(["model", *heads], rows, name="Results side by side", numeric=len(heads))
    columns = [
        blocks.bars(f"{column.metric} of {column.task}, {column.protocol}, %", comparison.rows, {column.metric: values})
        for column, values in zip(comparison.columns, map(list, zip(*comparison.values, strict=True)), strict=True)
    ]
    sections = [
        Section("Results", [table], "In %. Click a header to sort; the best of each column is in bold."),
        Section("Models", columns),
    ]
    by_task: dict[str, list[tuple[str, Result]]] = {}
    for name, result in results:
        by_task.setdefault(f"{result.task}, {result.protocol['name']}", []).append((name, result))
    for task, of_task in by_task.items():
        if classes := class_bars(of_task):
            sections.append(Section(f"Classes of {task}", classes))
    count = f"{len(comparison.rows)} model{'s' * (len(comparison.rows) != 1)}"
    return Page("Comparison", "Results side by side", f"{count}; {', '.join(by_task)}", sections)
