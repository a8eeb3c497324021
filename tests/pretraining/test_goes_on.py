"""A run that is stopped and started again: where it stops, what it counts, what it refuses; and what bookkeeping takes."""

import dataclasses
import gc
import json
import shutil
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from selfpatch.commands.pretrain import pretrain
from selfpatch.data.augmentation.crops import Crops
from selfpatch.errors import UserError
from selfpatch.output import atomic_files, checkpoint
from selfpatch.output.metric_logger import MetricLogger, read_metrics
from selfpatch.pretraining import train_step, views
from selfpatch.training import loop
from tests.small_models import tiny_config, tiny_student_teacher

SETTINGS = {"optim.steps": 6, "efficiency.num_workers": 0}
# What a line of the log has that depends on the clock or on the process.
BY_CLOCK = {"images_per_second", "data_wait", "memory_mb"}


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """Smaller than a global crop."""
    folder, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for index in range(9):
        Image.fromarray(rng.integers(0, 256, (28, 30, 3), dtype=np.uint8)).save(folder / f"{index}.png")
    return folder


def run(images: Path, out: Path, **settings):
    return pretrain(images, out, config=tiny_config(), settings=SETTINGS | settings)


def log_of(out: Path) -> list[dict]:
    lines = read_metrics(out / "metrics.jsonl")
    return [{name: value for name, value in line.items() if name not in BY_CLOCK} for line in lines]


def test_a_run_stops_at_its_step_and_stays_there(images, tmp_path, capsys):
    for _ in range(2):
        assert run(images, tmp_path / "run", **{"run.stop_at_step": 3}).steps_done == 3
    assert "stops at step 3 (run.stop-at-step)" in capsys.readouterr().out
    assert run(images, tmp_path / "run", **{"run.stop_at_step": 2}).steps_done == 3
    assert run(images, tmp_path / "run").steps_done == 6


def test_every_number_of_the_log_is_that_of_an_unbroken_run(images, tmp_path, monkeypatch):
    """Counters too: images that were enlarged, and a step that was skipped before the stop."""
    apply_gradients = train_step.apply_gradients

    def poisoned(student_teacher, optimizer, loss, step, **settings):
        return apply_gradients(student_teacher, optimizer, loss * (float("nan") if step == 1 else 1), step, **settings)

    monkeypatch.setattr(train_step, "apply_gradients", poisoned)
    run(images, tmp_path / "unbroken")
    run(images, tmp_path / "run", **{"run.stop_at_step": 3})
    run(images, tmp_path / "run")
    unbroken = log_of(tmp_path / "unbroken")
    assert log_of(tmp_path / "run") == unbroken
    assert unbroken[-1]["skipped_steps"] == 1
    assert unbroken[-1]["upsampled_images"] == 24


def test_the_checkpoint_of_a_head_is_refused(images, tmp_path):
    path = checkpoint.save(
        tmp_path / "checkpoints",
        5,
        {"model": {"w": torch.ones(1)}, "optimizer": {}},
        {"step": 5, "identity": {}},
        keep=1,
    )
    with pytest.raises(UserError, match="is no checkpoint of a pretraining run"):
        pretrain(images, tmp_path / "run", config=tiny_config(), settings=SETTINGS, resume=path)
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_of_a_newer_version_is_refused(images, tmp_path):
    run(images, tmp_path / "run", **{"run.stop_at_step": 2})
    found, _ = checkpoint.load_latest(tmp_path / "run" / "checkpoints")
    checkpoint.save(tmp_path / "run" / "checkpoints", 3, found.tensors, found.state | {"format": 99}, keep=9)
    with pytest.raises(UserError, match="newer version"):
        run(images, tmp_path / "run")


@pytest.mark.parametrize("has_checkpoint", [True, False])
def test_an_image_that_was_removed_is_what_is_spoken_of(has_checkpoint, images, tmp_path):
    """Not a setting that is derived from the number of images; of a run that was killed before its first save too."""
    folder = tmp_path / "images"
    folder.mkdir()
    for path in images.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    optim = dataclasses.replace(tiny_config().optim, warmup_epochs=None)
    config = dataclasses.replace(tiny_config(), optim=optim)
    pretrain(folder, tmp_path / "run", config=config, settings=SETTINGS | {"run.stop_at_step": 1})
    if not has_checkpoint:
        shutil.rmtree(tmp_path / "run" / "checkpoints")
    next(folder.iterdir()).unlink()
    with pytest.raises(UserError, match="9 then, 8 now"):
        pretrain(folder, tmp_path / "run", config=config, settings=SETTINGS)


def test_the_log_is_replaced_as_a_whole_or_not_at_all(tmp_path, monkeypatch):
    file = tmp_path / "metrics.jsonl"
    lines = "".join(json.dumps({"step": step, "loss": 1.0}) + "\n" for step in range(1, 6))
    file.write_text(lines)

    def power_cut(path):
        raise OSError("power cut")

    with monkeypatch.context() as context:
        context.setattr(atomic_files, "fsync", power_cut)
        with pytest.raises(OSError, match="power cut"):
            MetricLogger(file, first_step=3)
    assert file.read_text() == lines
    MetricLogger(file, first_step=3)
    assert [line["step"] for line in read_metrics(file)] == [1, 2, 3]


@pytest.mark.parametrize("num_parts", [1, 4])
def test_no_more_than_one_part_of_a_batch_is_held_in_float(num_parts, monkeypatch):
    alive: list[weakref.ref] = []
    most, normalize = [0], views.normalize

    def watched(crops, mean, std):
        result = normalize(crops, mean, std)
        alive.append(weakref.ref(result))
        gc.collect()
        most[0] = max(most[0], sum(len(x.flatten()) for ref in alive if (x := ref()) is not None))
        return result

    monkeypatch.setattr(views, "normalize", watched)
    config = tiny_config()
    generator = torch.Generator().manual_seed(0)
    crops = Crops(
        torch.randint(0, 256, (2, 8, 3, 32, 32), dtype=torch.uint8, generator=generator),
        torch.randint(0, 256, (2, 8, 3, 24, 24), dtype=torch.uint8, generator=generator),
    )
    parts = views.make_views(crops, config.crops, torch.device("cpu"), num_parts=num_parts)
    train_step.accumulate_gradients(
        tiny_student_teacher(config), parts, 0, lambda: torch.enable_grad(), num_parts=num_parts
    )
    numbers_of_a_part = 8 // num_parts * 2 * 3 * (32 * 32 + 24 * 24)
    assert most[0] == numbers_of_a_part


def test_bookkeeping_that_nobody_asked_for_takes_a_twentieth_of_the_time(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(loop.time, "perf_counter", lambda: clock[0])
    budget = loop.BookkeepingBudget()
    pictures = loop.PeriodicCallback(1, lambda step: {}, within_budget=True)
    spent = 0.0
    for _ in range(1000):
        clock[0] += 1.0  # a step
        if budget.is_left(pictures):
            with budget.spending(pictures):
                clock[0] += 3.0  # pictures
            spent += 3.0
    assert 0.03 * clock[0] < spent <= 0.05 * clock[0], "time for the last ones is kept"


def test_a_short_run_draws_and_saves_once_unless_asked(images, tmp_path, monkeypatch):
    saved = []
    save = checkpoint.save
    monkeypatch.setattr(
        checkpoint, "save", lambda folder, step, *rest, **more: saved.append(step) or save(folder, step, *rest, **more)
    )
    run(images, tmp_path / "run")
    assert saved == [6]
    saved.clear()
    run(images, tmp_path / "asked", **{"run.save_every": 2})
    assert saved == [2, 4, 6]
