"""A study in seconds: 24 scenes, 9 + 6 with masks, weights of a tiny network, two steps per training."""

import json
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest

from selfpatch.commands.callbacks import monitor
from selfpatch.commands.study import cells
from selfpatch.commands.study import study as study_module
from selfpatch.commands.study.plan import Timing
from selfpatch.commands.study.study import StudyResult, study
from selfpatch.config.study import StudyConfig
from selfpatch.demo.scenes import write_scenes
from selfpatch.errors import StoppedError
from selfpatch.export import export_timm
from tests.small_models import tiny_config, tiny_student_teacher

CONFIG = StudyConfig(
    candidates=("as-is", "continue-dino"),
    steps=2,
    seeds=2,
    label_shares=(1, 4, 64),
    linear_steps=2,
    image_size=48,
    set=(
        "crops.global-size=32", "crops.local-size=16", "crops.num-local=1", "optim.batch-size=4",
        "efficiency.num-workers=0", "objectives.dino.head.hidden-dim=16", "objectives.dino.head.bottleneck-dim=8",
        "backbone.depth=1",
    ),
)  # fmt: skip


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> Path:
    """images/, ade20k/ and weights.safetensors."""
    folder = tmp_path_factory.mktemp("study-data")
    write_scenes(folder, num_unlabeled=24, num_train=9, num_val=6, size=48, seed=0)
    export_timm(tiny_student_teacher(tiny_config()).teacher.export_backbone(), folder / "weights.safetensors")
    return folder


@pytest.fixture(scope="session")
def run_study(data):
    """A study of the scenes with these changes to its settings; nobody looks at pictures here, nor times steps if not asked to."""

    def run(out: Path, *, images: Path | None = None, init_from: Path | None = None, **changes) -> StudyResult:
        with pytest.MonkeyPatch.context() as patch:
            for drawing in ("visualize", "draw_curves"):
                patch.setattr(monitor, drawing, lambda *_, **__: [])
            dry_run = changes.pop("dry_run", False)
            if not changes.pop("is_timed", False):
                patch.setattr(
                    study_module, "time_candidates", lambda request, _: dict.fromkeys(request.names, Timing(1, 1, 1))
                )
            return study(
                images or data / "images", out, labels=data / "ade20k", config=replace(CONFIG, **changes),
                init_from=init_from or data / "weights.safetensors", device="cpu", dry_run=dry_run,
            )  # fmt: skip

    return run


class Cut(NamedTuple):
    """What a study that was cut twice did, in all calls together."""

    result: StudyResult
    trained: list[str]  # runs, in the order in which their training began or went on
    num_written: int  # times that something of a cell was done
    signal: int  # that the first cut ended with
    unfinished: list[dict]  # study.json after each cut


@pytest.fixture(scope="session")
def cut(run_study, tmp_path_factory) -> Cut:
    """A signal in the first training, then death right after a score."""
    out = tmp_path_factory.mktemp("studies") / "cut"
    train, write, trained, written, unfinished = cells.pretrain, cells.StudyFolder.write_cell, [], [], []

    def cut_pretrain(images, run, **settings):
        trained.append(run.name)
        if len(trained) == 1:
            return train(images, run, **settings | {"config": stopping_at(settings["config"])}).__class__(
                out=run, steps_done=1, num_steps=2, scores={}, backbone_file=run, load_line="", stopped_by=15
            )
        return train(images, run, **settings)

    def stopping_at(config):
        return replace(config, run=replace(config.run, stop_at_step=1))

    def cut_write(folder, record):
        write(folder, record)
        written.append(record)
        if len(written) == 8:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cells, "pretrain", cut_pretrain)
        patch.setattr(cells.StudyFolder, "write_cell", cut_write)
        with pytest.raises(StoppedError) as stopped:
            run_study(out)
        unfinished.append(json.loads((out / "study.json").read_text()))
        with pytest.raises(KeyboardInterrupt):
            run_study(out)
        unfinished.append(json.loads((out / "study.json").read_text()))
        result = run_study(out)
    return Cut(result, trained, len(written), stopped.value.number, unfinished)


@pytest.fixture(scope="session")
def finished(cut) -> StudyResult:
    return cut.result
