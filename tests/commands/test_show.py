"""`show` and `pretrain --dry-run`: what they say is what is there, and nothing is written."""

import json
import re
from pathlib import Path

import pytest

from selfpatch import cli
from selfpatch.output.folder_lock import FolderLock
from tests.cli.conftest import a_run, finished_run, pretrain, refused, scenes  # noqa: F401
from tests.refusals import contents


def shown(run: Path, capsys) -> str:
    capsys.readouterr()
    before = contents(run)
    assert cli.main(["show", str(run)]) == 0
    assert contents(run) == before
    return capsys.readouterr().out


def test_show(a_run, capsys):  # noqa: F811
    metrics = a_run / "metrics.jsonl"
    lines = [{"step": 1, "loss": 3.0, "in_context/mIoU": 0.5}, {"step": 2, "loss": 2.0}, {"step": 3, "loss": 2.5}]
    lines += [{"step": step, "loss": 4.0, "crops/std": 0.01} for step in (4, 5)]
    metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    text = shown(a_run, capsys)
    assert "12 images" in text
    assert "saved at step 1 of 1, finished" in text
    assert "loss: 4.0000 at step 5, best 2.0000 at step 2" in text
    assert "in_context/mIoU: 0.5000 at step 1, best 0.5000 at step 1" in text
    assert "health COLLAPSED (blank images)" in text
    assert re.search(r"  optim.batch_size: 1024 -> 4\n", text)
    assert "optim.weight_decay:" not in text  # as the recipe has it
    assert "checkpoints: 1 " in text
    line = next(line for line in text.splitlines() if line.startswith("import timm"))
    names: dict = {}
    exec(line, names)
    assert names["backbone"].embed_dim == 32


def test_show_of_a_run_that_has_just_begun(a_run, capsys):  # noqa: F811
    import shutil

    shutil.rmtree(a_run / "checkpoints")
    for name in ("metrics.jsonl", "backbone.safetensors"):
        (a_run / name).unlink()
    lock = FolderLock(a_run)
    lock.take()
    text = shown(a_run, capsys)
    lock.close()
    assert re.search(r"saved at step 0 of 1, running \(process \d+ on .*\), logged up to step 0", text)
    assert "no numbers yet" in text
    assert "nothing to load yet" in text
    assert "health" not in text


@pytest.mark.parametrize("name", ["nope", "."])
def test_show_refuses_what_is_no_run(name, tmp_path, refused):  # noqa: F811
    refused(["show", tmp_path / name], "is no folder of a run", "config.yaml", out=tmp_path)


@pytest.mark.slow
def test_dry_run_says_what_would_happen_and_writes_nothing(pretrain, tmp_path, capsys):  # noqa: F811
    options = ("--optim.steps", 20, "--run.save-every", 5)
    capsys.readouterr()
    assert pretrain(tmp_path / "run", *options, "--dry-run") == 0
    planned = capsys.readouterr().out
    assert not (tmp_path / "run").exists()
    assert "would start at step 0 and end at step 20" in planned
    assert "every 5 steps, of which 3 are kept" in planned
    assert "estimate: " in planned
    size = float(re.search(r"checkpoints of ([\d.]+) MB", planned)[1])
    assert pretrain(tmp_path / "run", *options, "--run.stop-at-step", 1) == 0
    (checkpoint,) = (tmp_path / "run/checkpoints").iterdir()
    written = sum(file.stat().st_size for file in checkpoint.iterdir()) / 1e6
    assert size == pytest.approx(written, rel=0.1)
    before = contents(tmp_path / "run")
    capsys.readouterr()
    assert pretrain(tmp_path / "run", *options, "--dry-run") == 0
    assert "would go on at step 1 and end at step 20" in capsys.readouterr().out
    assert pretrain(tmp_path / "run", *options, "--run.stop-at-step", 1, "--dry-run") == 0
    assert "would do nothing" in capsys.readouterr().out
    assert contents(tmp_path / "run") == before
