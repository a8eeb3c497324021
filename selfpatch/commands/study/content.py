"""study.json: all that is known of a study, for programs and pages; docs/study.md says what its fields mean."""

import time
from pathlib import Path
from typing import Any

from selfpatch.commands.study import ranking
from selfpatch.commands.study.budget import describe_budget
from selfpatch.commands.study.cells import Study, all_cells, is_done
from selfpatch.commands.study.plan import PlannedCandidate, total_seconds
from selfpatch.commands.study.preparation import Prepared, Request
from selfpatch.config.io import to_dict
from selfpatch.output.versions import versions
from selfpatch.recipes.candidates import describe_candidate, needs_weights, reference_of, trains


def describe_study(
    request: Request, prepared: Prepared, plan: list[PlannedCandidate], *, images: Path, num_left_out: int
) -> dict[str, Any]:
    """Entries of study.json that are fixed before the first cell."""
    steps = max(planned.steps for planned in plan)
    trained = [config for name, config in prepared.runs.resolved.items() if trains(name)]
    budget = describe_budget(trained[0], len(prepared.source), steps) if trained else {}
    return {
        "images": str(images),
        "labels": str(request.labels),
        "init_from": request.init_from,
        "settings": request.identity(),
        "data": {
            "num_images": len(request.images),
            "num_left_out": num_left_out,
            "left_out": "left_out.txt",
            "num_train_images": len(request.layout.train),
            "num_val_images": len(request.layout.val),
            "class_names": prepared.scoring.class_names,
            "notes": list(request.layout.notes),
        },
        "protocols": prepared.scoring.protocols.as_json(),
        "plan": {
            "candidates": [planned.as_json() for planned in plan],
            "seconds": total_seconds(plan),
            "budget": budget,
            "common": prepared.runs.common,
        },
        "candidates": {
            name: {
                "description": describe_candidate(name, request.weights_name),
                "trains": trains(name),
                "starts_from_weights": needs_weights(name),
                "settings": to_dict(prepared.runs.resolved[name]) if trains(name) else None,
            }
            for name in request.names
        },
        "columns": prepared.columns,
        "headline": list(ranking.HEADLINE),
        "reference": reference_of(request.names),
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "versions": versions(),
    }


def progress(study: Study, plan: list[PlannedCandidate]) -> dict[str, Any]:
    """The state of every cell, and the time that is left by the plan and by how it has kept so far."""
    cells, planned_seconds, spent, left = [], 0.0, 0.0, 0.0
    for cell in all_cells(plan):
        record = study.folder.read_cell(cell.candidate, cell.seed)
        done = is_done(record, study.columns)
        cells.append(describe_cell(cell.candidate, cell.seed, record, done=done))
        if record is not None and done:
            planned_seconds += cell.planned.cell_seconds
            spent += sum(record["seconds"].values())
        else:
            left += cell.planned.cell_seconds
    pace = spent / planned_seconds if planned_seconds else 1.0
    num_done = sum(cell["state"] in ("done", "failed") for cell in cells)
    return {
        "cells": cells,
        "progress": {"done": num_done, "total": len(cells), "seconds_spent": spent, "seconds_left": pace * left},
    }


def describe_cell(candidate: str, seed: int, record: dict[str, Any] | None, *, done: bool) -> dict[str, Any]:
    described: dict[str, Any] = {"candidate": candidate, "seed": seed}
    if record is None:
        return described | {"state": "waiting", "scores": {}}
    described["state"] = "failed" if "failed" in record else "done" if done else "running"
    scores = {column: score["mIoU"] for column, score in record["scores"].items()}
    more = {name: record[name] for name in ("training", "failed", "seconds") if name in record}
    return described | {"scores": scores} | more
