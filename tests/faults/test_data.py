"""Rows 19 to 24: workers and images."""

import functools
import os
import shutil
import signal

import numpy as np
import pytest
from PIL import Image

from tests.faults.command import FORK, NUM_STEPS, assert_same_run, at_step, checkpoints, metrics
from tests.faults.test_stops import children_of


@pytest.fixture
def images(runs):
    """A copy, to be spoiled."""
    folder = runs.folder / "images"
    shutil.copytree(runs.scenes / "images", folder)
    return folder


def paused_at(step, options, runs, **settings):
    """A run that waits in this step: the command, and the event that lets it go on."""
    here, on = FORK.Event(), FORK.Event()
    command = runs.start(*options, fault=at_step(step, lambda: (here.set(), on.wait(100))), **settings)
    assert here.wait(100), command.printed
    return command, on


def test_row_19_a_killed_worker_is_named_and_the_run_goes_on(runs, unbroken):
    command, on = paused_at(2, ("--efficiency.num-workers", 1), runs)
    (worker,) = children_of(command.pid)
    os.kill(worker, signal.SIGKILL)
    on.set()
    assert command.wait() == 1
    assert f"process {worker} died (SIGKILL). Images of step" in command.printed
    assert "start the same command again" in command.printed
    runs.run()
    assert_same_run(runs.out, unbroken)


def test_row_20_a_worker_that_hangs_is_named_after_a_limit_and_the_process_ends_at_once(runs, unbroken):
    def one_second() -> None:
        from selfpatch.commands.run_setup import task_and_batches

        task_and_batches.training_batches = functools.partial(task_and_batches.training_batches, timeout_s=1)

    here, on = FORK.Event(), FORK.Event()

    def fault() -> None:
        one_second()
        at_step(2, lambda: (here.set(), on.wait(100)))()

    command = runs.start("--efficiency.num-workers", 1, fault=fault)
    assert here.wait(100)
    (worker,) = children_of(command.pid)
    os.kill(worker, signal.SIGSTOP)
    on.set()
    command.wait_for("has given no result for 1 s")
    assert command.wait(limit=20) == 1
    assert f"process {worker} has given no result for 1 s. Images of step" in command.printed
    assert ", the first of them " in command.printed
    assert not os.path.exists(f"/proc/{worker}")
    runs.run()
    assert_same_run(runs.out, unbroken)


def test_row_21_unreadable_truncated_and_empty_images_are_replaced_listed_and_counted(runs, images):
    files = sorted(images.iterdir())
    files[0].write_bytes(b"no image")
    files[1].write_bytes(files[1].read_bytes()[:200])
    files[2].write_bytes(b"")
    outs = [runs.folder / name for name in ("one", "two")]
    for workers, out in enumerate(outs):
        runs.run("--run.max-bad-fraction", 0.5, "--efficiency.num-workers", workers, images=images, out=out)
    lists = [(out / "bad_images.txt").read_text() for out in outs]
    assert lists[0] == lists[1]
    assert {line.split("\t")[0] for line in lists[0].splitlines()} == {file.name for file in files[:3]}
    assert metrics(outs[0])[-1]["bad_images"] == 3
    assert [line["loss"] for line in metrics(outs[0])] == [line["loss"] for line in metrics(outs[1])]


def test_row_22_no_folder_no_image_none_readable_and_one_image_are_refused_before_training(runs, images):
    printed = runs.run(images=runs.folder / "missing", code=2)
    assert "missing does not exist" in printed
    (runs.folder / "empty").mkdir()
    assert "there is no image below" in runs.run(images=runs.folder / "empty", code=2)
    for number, file in enumerate(sorted(images.iterdir())):
        file.write_bytes(b"no image") if number else None
    first = sorted(images.iterdir())[0]
    shutil.copy(first, runs.folder / "kept.png")
    first.write_bytes(b"no image")
    assert "can be read" in runs.run(images=images, code=2)
    for file in images.iterdir():
        file.unlink()
    shutil.copy(runs.folder / "kept.png", images / "one.png")
    assert "1 images do not fill one batch of 4" in runs.run(images=images, code=2)
    assert not runs.out.exists()


def test_row_23_files_deleted_in_mid_run_are_replaced_and_too_many_stop_it(runs, images):
    def delete(count):
        def fault() -> None:
            for file in sorted(images.iterdir())[:count]:
                file.unlink()

        return at_step(0, fault)

    out = runs.folder / "few"
    runs.run("--optim.steps", 12, images=images, out=out, fault=delete(2))
    assert "No such file" in (out / "bad_images.txt").read_text()
    assert checkpoints(out)[-1] == 12
    shutil.copytree(runs.scenes / "images", images, dirs_exist_ok=True)
    printed = runs.run("--optim.steps", 12, images=images, fault=delete(8), code=1)
    assert "more than run.max-bad-fraction 20%" in printed and "bad_images.txt" in printed


def test_row_24_images_replaced_between_runs_are_refused_unless_told(runs, images, unbroken):
    runs.run("--run.stop-at-step", 2, images=images)
    original = {file: file.read_bytes() for file in images.iterdir()}
    for number, file in enumerate(images.iterdir()):
        pixels = np.random.default_rng(number).integers(0, 256, (48, 48, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(file)
    printed = runs.run(images=images, code=2)
    assert "other contents" in printed and "--run.allow-other-images" in printed
    next(iter(original)).unlink()
    assert "13 then, 12 now" in runs.run(images=images, code=2)
    for file, data in original.items():
        file.write_bytes(data)
    copy = runs.folder / "told"
    shutil.copytree(runs.out, copy)
    runs.run(images=images)  # put back, by other dates
    assert_same_run(runs.out, unbroken)
    shutil.copy(sorted(images.iterdir())[0], sorted(images.iterdir())[1])
    runs.run("--run.allow-other-images", images=images, out=copy)
    assert checkpoints(copy)[-1] == NUM_STEPS
