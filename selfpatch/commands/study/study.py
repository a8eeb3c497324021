"""`selfpatch study`: candidates at equal budgets on the same images, scored with labels, ranked with intervals."""

from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

from selfpatch.commands.report.study_report import report_study
from selfpatch.commands.run_setup.hardware import find_device
from selfpatch.commands.study import held_out, ranking
from selfpatch.commands.study.best_model import export_best
from selfpatch.commands.study.cells import Cell, Study, all_cells, cell_backbone, do_cell, is_done
from selfpatch.commands.study.content import describe_study, progress
from selfpatch.commands.study.folder import StudyFolder
from selfpatch.commands.study.plan import PlannedCandidate, budget_sentence, choose_steps, print_plan
from selfpatch.commands.study.preparation import (
    Prepared,
    Request,
    leave_out_validation,
    prepare,
    read_request,
    time_candidates,
)
from selfpatch.config.processes import find_place
from selfpatch.config.study import StudyConfig
from selfpatch.data.manifest import open_images
from selfpatch.errors import RunFailedError, UserError, working
from selfpatch.output.atomic_files import atomic_write
from selfpatch.output.terminal import say
from selfpatch.visualization.report.page import REPORT


class StudyResult(NamedTuple):
    """The answer of a study.

    Args:
        best_file: the exported model; None: the plan alone was asked for.
        content: what study.json holds (docs/study.md).
    """

    out: Path
    best_file: Path | None
    sentences: list[str]
    content: dict[str, Any]


def study(
    images: Path | str,
    out: Path | str,
    *,
    labels: Path | str,
    init_from: Path | str | None = None,
    config: StudyConfig | None = None,
    device: str = "auto",
    dry_run: bool = False,
) -> StudyResult:
    """Find out which start and which recipe is best on `images`; everything goes to `out`. Called again, it goes on.

    Args:
        labels: images with masks, in any layout that `evaluate` reads; no validation image is trained on.
        init_from: weights to compare with and to continue: anything `load_backbone` takes.
        config: candidates, hours, seeds, scores; None: the usual ones.
        dry_run: time the candidates and print the plan, and nothing else.

    Raises:
        UserError: images, labels, weights, candidates or hours do not allow a study, or `out` holds another one.
        StoppedError: a signal came; what is done is kept.
    """
    if find_place() is not None:
        raise UserError("a study trains one candidate after another in one process; start it without torchrun or srun")
    folder, config, images, labels = StudyFolder(Path(out)), config or StudyConfig(), Path(images), Path(labels)
    # 1. What is asked for, and what is there already.
    before = folder.check()
    origin = None if init_from is None else str(init_from)
    request = read_request(images, labels, origin, config, find_device(device))
    if before is not None:
        folder.require_same(before, request.identity())
    if dry_run and before is None:
        return plan_only(request, folder, images)
    with closing(folder):
        folder.take()
        # 2. The plan, once.
        try:
            if before is None:
                say_left_out(request, folder)
            common = None if before is None else before["plan"].get("common")
            prepared = prepare(request, open_images(folder.manifest), folder.runs / "none", common)
            content = before or plan_study(request, prepared, folder, images)
        except UserError:
            folder.give_up()
            raise
        plan = [PlannedCandidate.from_json(values) for values in content["plan"]["candidates"]]
        print_plan(plan, content["plan"]["budget"])
        whole = Study(
            folder, prepared.runs, prepared.scoring, content["columns"], len(prepared.source), request.init_from,
            request.num_heads, request.device,
        )  # fmt: skip
        if dry_run:
            return StudyResult(folder.path, None, [], content | progress(whole, plan))
        # 3. The cells, then the answer.
        with working():
            do_cells(whole, plan, content)
            return conclude(whole, plan, content, request)


def say_left_out(request: Request, folder: StudyFolder | None) -> held_out.LeftOut:
    left_out = leave_out_validation(request, folder)
    file = None if folder is None else folder.left_out_file
    say(held_out.left_out_sentence(request.images, left_out, file))
    return left_out


def plan_only(request: Request, folder: StudyFolder, images: Path) -> StudyResult:
    """Nothing is written."""
    left_out = say_left_out(request, None)
    prepared = prepare(request, held_out.remaining(request.images, left_out), folder.runs / "none")
    plan = make_plan(request, prepared)
    content = describe_study(request, prepared, plan, images=images, num_left_out=len(left_out))
    print_plan(plan, content["plan"]["budget"])
    return StudyResult(folder.path, None, [], content)


def make_plan(request: Request, prepared: Prepared) -> list[PlannedCandidate]:
    config = request.config
    return choose_steps(
        time_candidates(request, prepared), seeds=config.seeds, hours=config.hours, longest=prepared.runs.longest,
        given=config.steps,
    )  # fmt: skip


def plan_study(request: Request, prepared: Prepared, folder: StudyFolder, images: Path) -> dict[str, Any]:
    """Choose the steps and write study.json, which a later call goes on with."""
    plan = make_plan(request, prepared)
    num_left_out = len(request.images) - len(prepared.source)
    content = describe_study(request, prepared, plan, images=images, num_left_out=num_left_out)
    content["state"] = "running"
    folder.write(content)
    return content


def do_cells(study: Study, plan: list[PlannedCandidate], content: dict[str, Any]) -> None:
    """What is not done yet, cell by cell; study.json is written after every score."""
    cells = list(all_cells(plan))
    for number, cell in enumerate(cells, start=1):
        if is_done(study.folder.read_cell(cell.candidate, cell.seed), study.columns):
            continue
        found = progress(study, plan)
        say(f"cell {number} of {len(cells)}: {cell.candidate}, seed {cell.seed}; {times(found['progress'])}")
        for _ in do_cell(study, cell):
            done = content | progress(study, plan)
            study.folder.write(done)
            report_study(study.folder.path, done)


def times(found: dict[str, float]) -> str:
    spent, left = (timedelta(seconds=round(found[name])) for name in ("seconds_spent", "seconds_left"))
    return f"{spent} done, about {left} left"


def conclude(study: Study, plan: list[PlannedCandidate], content: dict[str, Any], request: Request) -> StudyResult:
    """Rank, say what it means, export the best, and write it all.

    Raises:
        RunFailedError: the training of every candidate but one failed.
    """
    # 1. The ranking.
    folder, columns = study.folder, content["columns"]
    records: ranking.Records = {}
    for cell in all_cells(plan):
        record = folder.read_cell(cell.candidate, cell.seed)
        if record is not None and "failed" not in record:
            records.setdefault(cell.candidate, {})[cell.seed] = record
    if len(records) < 2:
        raise RunFailedError(f"all candidates but {', '.join(records) or 'none'} failed; {folder.study_file} says why")
    ranked = ranking.rank(records, columns)

    folder.tidy()

    # 2. The best model, of its first seed: none is chosen by its score.
    best = ranking.best_of(ranked)
    seed, place = best.seeds[0], next(planned for planned in plan if planned.name == best.candidate)
    scores = {column: best.by_score[column][0] for column in columns}
    backbone = cell_backbone(study, Cell(best.candidate, seed, place))
    line = export_best(backbone, folder, candidate=best.candidate, seed=seed, weights=request.init_from, scores=scores)
    file = folder.best / "backbone.safetensors"

    # 3. In words, as a table, and as JSON.
    said = ranking.sentences(ranked, weights=request.weights_name, best_file=str(file))
    interval = ranking.interval_sentence(ranked, content["data"]["num_val_images"])
    content = content | progress(study, plan) | {
        "state": "done",
        "ranking": [ranking.as_json(one) for one in ranked],
        "interval": interval,
        "sentences": said,
        "best": {
            "candidate": best.candidate, "seed": seed, "file": "best/backbone.safetensors", "load": line,
            "scores": scores,
        },
    }  # fmt: skip
    folder.write(content)
    is_reported = report_study(folder.path, content)
    table = ranking.ranking_table(ranked, columns, content["reference"])
    budget = content["plan"]["budget"]
    texts = [f"{text[0].upper()}{text[1:]}." for text in said]
    notes = [f"In %, {interval}.", *([f"{budget_sentence(budget)}."] if budget else [])]
    with atomic_write(folder.ranking_file) as temporary:
        temporary.write_text("\n\n".join(["# Ranking", *texts, table.rstrip(), *notes]) + "\n", encoding="utf-8")
    for text in ("", table, *notes, *texts, line):
        say(text)
    page = [folder.path / REPORT] if is_reported else []
    say("  ".join(map(str, (*page, folder.ranking_file, folder.study_file, file))))
    return StudyResult(folder.path, file, said, content)
