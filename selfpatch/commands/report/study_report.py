"""The page of a study, made from study.json: answer, ranking with intervals, curves of each candidate, plan."""

from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

from selfpatch.output.markdown import mean_and_spread, with_interval
from selfpatch.output.metric_logger import read_metrics
from selfpatch.visualization.report import blocks
from selfpatch.visualization.report.blocks import Block, Cell, Page, Section, Tone
from selfpatch.visualization.report.curves import series_of
from selfpatch.visualization.report.page import REPORT, page_or_warning, write_page

VERDICTS: dict[str, Tone] = {"better": "good", "worse": "bad", "undecided": ""}
STATES: dict[str, Tone] = {"done": "good", "failed": "bad", "running": "warn", "waiting": ""}


def report_study(folder: Path, content: Mapping[str, Any]) -> bool:
    """Write OUT/report.html; returns False, after a warning, if that failed."""
    return page_or_warning(lambda: write_page(study_page(folder, content), folder / REPORT), folder / REPORT)


def study_page(folder: Path, content: Mapping[str, Any]) -> Page:
    """
    Args:
        content: of study.json, which may be of a study that is not done yet.
    """
    ranking = content.get("ranking") or []
    sections = []
    if ranking:
        answer = [blocks.texts([sentence_case(text) for text in content["sentences"]], large=True)]
        sections.append(Section("Answer", [*answer, summary(content)]))
        sections.append(Section("Ranking", [ranking_intervals(content), ranking_table(content)]))
        load = [blocks.code("In plain timm", content["best"]["load"])]
        file = f"{content['best']['candidate']}, seed {content['best']['seed']}: {content['best']['file']}"
        sections.append(Section("Load the best model", [blocks.texts([file]), *load]))
    else:
        sections.append(Section("Progress", [summary(content)], "The ranking comes when all cells are done."))
    if curves := candidate_curves(folder, content):
        lead = "Losses of different methods are different things: compare their shapes, not their heights."
        sections.append(Section("Curves of the candidates", curves, lead))
    sections.append(
        Section(
            "Cells",
            [cells_table(folder, content)],
            "One training and its scores each; a link leads to the page of its run.",
        )
    )
    sections.append(Section("Candidates and budget", candidates(content), closed=bool(ranking)))
    data = content["data"]
    subtitle = (
        f"{data['num_images'] - data['num_left_out']:,} images to train on, {data['num_train_images']} labeled ones to "
        f"score with, {data['num_val_images']} for validation; {content.get('state', 'running')}"
    )
    return Page("Study", f"Which start and recipe is best: {folder.absolute().name}", subtitle, sections)


def sentence_case(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."


def summary(content: Mapping[str, Any]) -> Block:
    shown = []
    if best := content.get("best"):
        first = next(one for one in content["ranking"] if one["candidate"] == best["candidate"])
        shown.append(blocks.tile("Best", best["candidate"], f"mIoU {100 * first['mIoU']:.1f} %", "good"))
        if found := first["against_reference"]:
            points, _, interval = with_interval(found["mean"], found["low"], found["high"]).partition(" ")
            note = f"{interval} points of mIoU".strip()
            shown.append(blocks.tile(f"Against {content['reference']}", points, note, VERDICTS[found["verdict"]]))
    progress = content.get("progress") or {}
    planned = duration(content["plan"]["seconds"])
    left = duration(progress.get("seconds_left", content["plan"]["seconds"]))
    note = "all done" if content.get("state") == "done" else f"about {left} left"
    done, total = progress.get("done", 0), progress.get("total", len(content.get("cells", [])))
    shown += [
        blocks.tile("Cells", f"{done} of {total}" if total else "0", note),
        blocks.tile("Time", duration(progress.get("seconds_spent", 0.0)), f"planned {planned}"),
    ]
    return blocks.tiles(*shown)


def duration(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))


def ranking_intervals(content: Mapping[str, Any]) -> Block:
    rows = []
    for one in content["ranking"]:
        by_column = [one["scores"][column]["by_seed"] for column in content["headline"]]
        rows.append(
            {
                "name": one["candidate"],
                "text": content["candidates"][one["candidate"]]["description"],
                "values": [sum(values) / len(values) for values in zip(*by_column, strict=True)],
                "mean": one["mIoU"],
                "difference": one["against_reference"],
            }
        )
    return blocks.intervals(
        rows,
        value="mIoU, %; small dots are seeds",
        difference=f"points against {content['reference']}, with the interval of the difference",
        note=sentence_case(content["interval"]),
    )


def ranking_table(content: Mapping[str, Any]) -> Block:
    columns = content["columns"]
    best = {column: max(one["scores"][column]["mean"] for one in content["ranking"]) for column in columns}
    rows: list[list[Cell | str]] = []
    for one in content["ranking"]:
        found = one["against_reference"]
        points = Cell("") if found is None else Cell(
            with_interval(found["mean"], found["low"], found["high"]), found["mean"], tone=VERDICTS[found["verdict"]]
        )  # fmt: skip
        scores = [one["scores"][column] for column in columns]
        rows.append(
            [
                one["candidate"],
                Cell(str(len(one["seeds"])), len(one["seeds"])),
                Cell(f"{100 * one['mIoU']:.1f}", one["mIoU"]),
                points,
                *(
                    Cell(mean_and_spread(score["by_seed"]), score["mean"], is_best=score["mean"] == best[column])
                    for column, score in zip(columns, scores, strict=True)
                ),
            ]
        )
    heads = ["candidate", "seeds", "mIoU, %", f"against {content['reference']}", *columns]
    return blocks.table(heads, rows, name="Ranking", numeric=len(heads) - 1)


def candidate_curves(folder: Path, content: Mapping[str, Any]) -> list[Block]:
    """The loss of each candidate that trains, one line per seed."""
    charts = []
    for name, candidate in content["candidates"].items():
        shown = []
        for cell in content.get("cells", []):
            if cell["candidate"] == name:
                lines = read_metrics(folder / run_of(cell) / "metrics.jsonl")
                losses = [one for one in series_of(lines) if one.name == "loss"]
                shown += [one._replace(name=f"seed {cell['seed']}") for one in losses]
        if shown:
            charts.append(blocks.chart(name, shown, note=candidate["description"]))
    return [blocks.charts(charts)] if charts else []


def run_of(cell: Mapping[str, Any]) -> str:
    """The folder of the run of a cell, if it trains."""
    return f"runs/{cell['candidate']}-{cell['seed']}"


def cells_table(folder: Path, content: Mapping[str, Any]) -> Block:
    columns, rows = content["columns"], []
    for cell in content.get("cells", []):
        seconds = sum(cell.get("seconds", {}).values())
        page = f"{run_of(cell)}/{REPORT}"
        scores = [cell["scores"].get(column) for column in columns]
        rows.append(
            [
                Cell(cell["candidate"], link=page if (folder / page).is_file() else ""),
                Cell(cell["state"], tone=STATES.get(cell["state"], "")),
                Cell(str(cell["seed"]), cell["seed"]),
                Cell(duration(seconds) if seconds else "", seconds or None),
                *(Cell("" if score is None else f"{100 * score:.2f}", score) for score in scores),
            ]
        )
    heads = ["candidate", "state", "seed", "time", *columns]
    return blocks.table(heads, rows, name="Cells of the study", numeric=len(heads) - 2)


def candidates(content: Mapping[str, Any]) -> list[Block]:
    planned = {one["name"]: one for one in content["plan"]["candidates"]}
    rows = [
        [
            name,
            one["description"],
            Cell(f"{planned[name]['steps']:,}", planned[name]["steps"]),
            Cell(str(planned[name]["num_seeds"]), planned[name]["num_seeds"]),
        ]
        for name, one in content["candidates"].items()
    ]
    table = blocks.table(["candidate", "what it is", "steps", "seeds"], rows, name="Candidates", numeric=2)
    budget = [f"{name.replace('_', ' ')}: {value}" for name, value in (content["plan"].get("budget") or {}).items()]
    return [table, blocks.texts(["The same for all that train: " + ", ".join(budget)])] if budget else [table]
