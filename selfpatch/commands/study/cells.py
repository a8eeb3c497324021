"""A cell: one candidate with one seed, trained and scored. What is done is kept, and a cut cell goes on."""

import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch

from selfpatch.backbones.backbone import Backbone
from selfpatch.backbones.pretrained import load_start
from selfpatch.commands.pretrain import build_parts, pretrain
from selfpatch.commands.study.budget import Runs, with_length
from selfpatch.commands.study.folder import StudyFolder
from selfpatch.commands.study.plan import PlannedCandidate
from selfpatch.commands.study.scoring import Scoring, feature_folder
from selfpatch.errors import StoppedError
from selfpatch.output.metric_logger import read_metrics
from selfpatch.output.terminal import say
from selfpatch.output.versions import versions
from selfpatch.recipes.candidates import AS_IS, needs_weights, trains
from selfpatch.training.loop import DivergenceError


class Cell(NamedTuple):
    candidate: str
    seed: int
    planned: PlannedCandidate


class Study(NamedTuple):
    """Inputs that are the same for every cell."""

    folder: StudyFolder
    runs: Runs
    scoring: Scoring
    columns: list[str]
    num_images: int
    init_from: str | None
    num_heads: int | None
    device: torch.device


def all_cells(plan: list[PlannedCandidate]) -> Iterator[Cell]:
    """Seeds in the outer loop: whenever it is cut, candidates have as many seeds each, give or take one."""
    for seed in range(max(candidate.num_seeds for candidate in plan)):
        yield from (Cell(planned.name, seed, planned) for planned in plan if seed < planned.num_seeds)


def is_done(record: dict[str, Any] | None, columns: list[str]) -> bool:
    return record is not None and ("failed" in record or all(name in record["scores"] for name in columns))


def do_cell(study: Study, cell: Cell) -> Iterator[dict[str, Any]]:
    """Train and score, as far as it is not done; yields the record each time something is done and written.

    Raises:
        StoppedError: a signal came; what is done is kept.
    """
    folder, name, seed = study.folder, cell.candidate, cell.seed
    record = folder.read_cell(name, seed) or {
        "candidate": name, "seed": seed, "scores": {}, "seconds": {"training": 0.0, "scores": 0.0},
        "versions": versions(),
    }  # fmt: skip
    # 1. The backbone.
    if trains(name) and "training" not in record:
        start = time.monotonic()
        try:
            record["training"] = train(study, cell)
        except DivergenceError as error:
            record["failed"] = str(error)
        record["seconds"]["training"] = time.monotonic() - start
        folder.write_cell(record)
        yield record
        if "failed" in record:
            say(f"{name}, seed {seed}, failed and is not ranked: {record['failed']}")
            return
    backbone = cell_backbone(study, cell)

    # 2. Its scores, one by one.
    with feature_folder() as features:
        encoder, scorers = study.scoring.cached(backbone, Path(features)), study.scoring.scorers(backbone)
        for column in study.columns:
            if column in record["scores"]:
                continue
            start = time.monotonic()
            at_work = folder.scoring(name, seed, column)
            record["scores"][column] = scorers[column](encoder, at_work)
            record["seconds"]["scores"] += time.monotonic() - start
            folder.write_cell(record)
            shutil.rmtree(at_work, ignore_errors=True)
            say(f"  {name}, seed {seed}: {column} mIoU {100 * record['scores'][column]['mIoU']:.2f}")
            yield record

    # 3. What is large and not needed any more.
    shutil.rmtree(folder.run(name, seed) / "checkpoints", ignore_errors=True)


def train(study: Study, cell: Cell) -> dict[str, Any]:
    config = with_length(study.runs.given[cell.candidate], steps=cell.planned.steps, seed=cell.seed)
    run = study.folder.run(cell.candidate, cell.seed)
    init_from = study.init_from if needs_weights(cell.candidate) else None
    result = pretrain(study.folder.manifest, run, config=config, init_from=init_from)
    if result.stopped_by:
        raise StoppedError(result.stopped_by, "the study is saved; the same command goes on from there")
    lines = read_metrics(run / "metrics.jsonl")
    losses = {name: value for name, value in (lines[-1] if lines else {}).items() if name.endswith("loss")}
    return {"steps": result.steps_done, "run": f"runs/{run.name}", "last": losses}


def cell_backbone(study: Study, cell: Cell) -> Backbone:
    """The backbone of a cell whose training, if any, is done."""
    if cell.candidate == AS_IS:
        assert study.init_from is not None
        return load_start(study.init_from, num_heads=study.num_heads).to(study.device)
    if trains(cell.candidate):
        return load_start(study.folder.run(cell.candidate, cell.seed) / "backbone.safetensors").to(study.device)
    config = with_length(study.runs.resolved[cell.candidate], steps=1, seed=cell.seed)
    parts = build_parts(config, study.num_images, study.device)
    return parts.state.student_teacher.teacher.export_backbone().to(study.device).eval()
