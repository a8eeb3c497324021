"""A cell: one method with one seed in one regime, trained and scored. What is done is kept, and a cut cell goes on."""

import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.does_it_help.methods import METHODS, START
from benchmarks.does_it_help.regimes import Regime
from benchmarks.does_it_help.scores import Score, cached, protocols
from benchmarks.time_limit import OutOfTimeError
from selfpatch.backbones.backbone import Backbone
from selfpatch.backbones.pretrained import load_backbone
from selfpatch.commands.pretrain import build_parts, pretrain
from selfpatch.commands.run_setup.resolve_config import resolve_config
from selfpatch.config import PretrainConfig
from selfpatch.config.io import to_dict
from selfpatch.data.image_folder import ImageFolder
from selfpatch.evaluation.datasets.segmentation import read_segmentation
from selfpatch.evaluation.fingerprint import fingerprint
from selfpatch.output.atomic_files import atomic_write
from selfpatch.output.metric_logger import read_metrics
from selfpatch.output.terminal import say
from selfpatch.output.versions import versions

# Settings that say how a run is made, not what comes out.
OTHER_SETTINGS = ("recipe", "seed", "evaluate", "efficiency", "run")


class Cell(NamedTuple):
    method: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.method}-{self.seed}"


def config_of(regime: Regime, cell: Cell, device: torch.device) -> PretrainConfig:
    build = METHODS[cell.method].build if cell.method != START else lambda base, _: base
    config = build(regime.base, regime.epochs)
    run = replace(config.run, device=str(device), max_to_keep=1, log_every=20)
    return replace(config, seed=cell.seed, run=run)


def budget_of(regime: Regime) -> dict[str, Any]:
    """All that is equal for the methods of a regime; cells that differ in it are not compared."""
    base = {name: value for name, value in to_dict(regime.base).items() if name not in OTHER_SETTINGS}
    weights = None if regime.weights is None else fingerprint(load_backbone(regime.weights))[:12]
    return {
        "num_images": regime.num_images,
        "weights": weights,
        "settings": base,
        "labels": {
            name: value for name, value in read_segmentation(regime.labels).describe().items() if name != "notes"
        },
        "protocols": {name: to_dict(protocol) for name, protocol in protocols(regime.sizes).items()},
    }


def do_cell(
    regime: Regime,
    cell: Cell,
    folder: Path,
    scorers: dict[str, Callable[[Backbone], Score]],
    device: torch.device,
    *,
    keep_runs: bool = False,
) -> None:
    """Train and score, as far as it is not done; FOLDER/cells/NAME.json holds what is.

    Raises:
        OutOfTimeError: a signal came; the next call goes on.
    """
    file, run = folder / "cells" / f"{cell.name}.json", folder / "runs" / cell.name
    record = read_record(file)
    if record is not None and scorers.keys() <= record["scores"].keys():
        return
    say(f"{regime.name} {regime.split}: {cell.method}, seed {cell.seed}")
    # 1. The backbone.
    if record is None:
        record = {"method": cell.method, "seed": cell.seed, "versions": versions(), "scores": {}}
        if cell.method != START:
            record |= train_cell(regime, cell, run, device)
    if cell.method == START:
        backbone = backbone_before_training(regime, cell, run, device)
    else:
        backbone = load_backbone(run / "backbone.safetensors", device=device)
    write_record(file, record)
    # 2. Its scores, one by one.
    with tempfile.TemporaryDirectory() as features:
        encoder = cached(backbone, Path(features))
        for name, score in scorers.items():
            if name not in record["scores"]:
                start = time.process_time()
                record["scores"][name] = score(encoder)
                headline, value = next(iter(record["scores"][name].items()))
                say(f"  {name}: {headline} {100 * value:.2f} ({time.process_time() - start:.0f} CPU s)")
                write_record(file, record)
    # 3. What is large and not needed any more.
    if not keep_runs:
        shutil.rmtree(run / "checkpoints", ignore_errors=True)


def backbone_before_training(regime: Regime, cell: Cell, run: Path, device: torch.device) -> Backbone:
    if regime.weights is not None:
        return load_backbone(regime.weights, device=device)
    config, _ = resolve_config(
        config_of(regime, cell, device), ImageFolder(regime.images), run, device, resume=None, init_from=None
    )
    parts = build_parts(config, regime.num_images, device)
    return parts.state.student_teacher.teacher.export_backbone().to(device)


def train_cell(regime: Regime, cell: Cell, run: Path, device: torch.device) -> dict[str, Any]:
    config = config_of(regime, cell, device)
    with timed(run.parent / f"{cell.name}-cost.json") as cost:
        result = pretrain(regime.images, run, config=config, init_from=regime.weights)
    if result.stopped_by:
        raise OutOfTimeError
    last = read_metrics(run / "metrics.jsonl")[-1]
    return {
        "training": {
            "steps": result.steps_done,
            "images_seen": result.steps_done * (config.optim.batch_size or 0),  # type: ignore[operator]
            **{name: round(value, 1) for name, value in cost.items()},
            **{name: round(value, 4) for name, value in last.items() if "loss" in name or "/" in name},
        },
        "objectives": to_dict(config.objectives),
        "aggregator": to_dict(config.aggregator),
    }


@contextmanager
def timed(file: Path) -> Iterator[dict[str, float]]:
    """Seconds of all attempts, by the clock and of all cores, data workers too; those of an attempt that is killed
    are not counted."""
    cost: dict[str, float] = {}
    file.parent.mkdir(parents=True, exist_ok=True)
    before = json.loads(file.read_text()) if file.exists() else {"cpu_seconds": 0.0, "wall_seconds": 0.0}
    cpu, wall = sum(os.times()[:4]), time.monotonic()
    try:
        yield cost
    finally:
        cost |= {
            "cpu_seconds": before["cpu_seconds"] + sum(os.times()[:4]) - cpu,
            "wall_seconds": before["wall_seconds"] + time.monotonic() - wall,
        }
        with atomic_write(file) as temporary:
            temporary.write_text(json.dumps(cost))


def read_record(file: Path) -> dict[str, Any] | None:
    return json.loads(file.read_text()) if file.exists() else None


def write_record(file: Path, record: dict[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(file) as temporary:
        temporary.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
