"""Rows 7 to 12, 30, 36 and 37: full, failing, slow and lying disks, and checkpoints of others."""

import errno
import os
import shutil
import threading
from pathlib import Path

import pytest
from safetensors.torch import load_file

from selfpatch.output import checkpoint, transient_errors
from tests.faults.command import (
    NUM_STEPS,
    assert_same_run,
    at_step,
    checkpoints,
    damaged,
    metrics,
    no_room,
    steps_logged,
)


@pytest.mark.parametrize("name", ["model", "backbone"])
def test_row_07_a_full_disk_in_save_says_what_is_needed_and_keeps_what_was_there(name, runs, unbroken):
    """From step 3 on: of the checkpoint of step 4, or of the exported backbone beside it."""
    printed = runs.run(fault=at_step(3, no_room(name)), code=1)
    assert "No space left on device" in printed or "no room for a checkpoint of" in printed
    assert " MB" in printed and str(runs.out) in printed
    assert checkpoints(runs.out) == ([2] if name == "model" else [2, 4])
    assert not list(runs.out.rglob("*.writing-*")) and not list(runs.out.glob(".backbone*"))
    assert load_file(runs.out / "backbone.safetensors")
    runs.run()
    assert_same_run(runs.out, unbroken)


def test_row_07_a_disk_that_is_full_from_the_start_leaves_nothing_in_the_way(runs, unbroken):
    """Not even the settings find room: the same command works once there is some."""

    def no_settings() -> None:
        from selfpatch.pretraining import run_folder

        def full(config, file, **_):
            file.write_text("half")
            raise OSError(errno.ENOSPC, "No space left on device", str(file))

        run_folder.write_yaml = full

    printed = runs.run(fault=no_settings, code=2)
    assert "No space left on device" in printed
    (runs.out / ".config.yaml.4711").write_text("half")  # of a start that was killed
    runs.run()
    assert_same_run(runs.out, unbroken)


def test_row_08_a_full_disk_for_logs_lists_and_pictures_costs_those_alone(runs):
    images = runs.folder / "images"
    shutil.copytree(runs.scenes / "images", images)
    sorted(images.iterdir())[0].write_bytes(b"no image")

    def full() -> None:
        """From the first step on whatever is appended goes to a device that is full, and so do pictures."""
        from selfpatch.commands.callbacks import monitor
        from selfpatch.output import metric_logger
        from selfpatch.pretraining import run_folder

        def no_picture(*_, **__):
            raise OSError(errno.ENOSPC, "No space left on device", "pictures/pca.png")

        def to_full_device() -> None:
            for module in (metric_logger, run_folder):
                module.open_to_append = lambda path, **options: os.fdopen(os.open("/dev/full", os.O_WRONLY), "a")

        monitor.visualize = no_picture
        loader, run_folder.RunFolder.metric_logger = (
            run_folder.RunFolder.metric_logger,
            lambda self, first_step: (
                to_full_device(),
                loader(self, first_step=first_step),
            )[1],
        )

    printed = runs.run("--evaluate.every-steps", 2, images=images, fault=full)
    assert printed.count("metrics.jsonl cannot be written (No space left on device); the run goes on without") == 1
    assert "bad_images.txt cannot be written (No space left on device); it lacks" in printed
    assert printed.count("warning: no picture of step") == 3
    assert checkpoints(runs.out)[-1] == NUM_STEPS
    runs.run("--run.stop-at-step", NUM_STEPS, images=images)


def flip_a_bit(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 4]) + data[middle + 1 :]


def test_row_09_a_flipped_bit_in_the_newest_checkpoint_is_noticed_and_told(runs, unbroken):
    runs.run("--run.stop-at-step", 4)
    for file in ("model.safetensors", "optimizer.safetensors", "state.json"):
        with damaged(runs.out / "checkpoints" / "step-00000004" / file, flip_a_bit):
            printed = runs.run("--run.stop-at-step", 3)
        assert f"step-00000004/{file} is missing or not what was written" in printed.replace("\n", " ")
        assert "step-00000002 at step 2" in printed
        shutil.rmtree(runs.out / "checkpoints" / "step-00000003")
        if not (runs.out / "checkpoints" / "step-00000004").exists():  # of a time line that was given up
            runs.run("--run.stop-at-step", 4)
    runs.run()
    assert_same_run(runs.out, unbroken)


def test_row_10_a_truncated_checkpoint_costs_itself_alone(runs, unbroken):
    runs.run("--run.stop-at-step", 4)
    file = runs.out / "checkpoints" / "step-00000004" / "optimizer.safetensors"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    assert "step-00000002 at step 2" in runs.run()
    assert_same_run(runs.out, unbroken)


def test_row_12_another_config_or_version_is_told_setting_by_setting(runs):
    runs.run("--run.stop-at-step", 2)
    printed = runs.run("--optim.lr", 0.5, "--teacher.momentum", 0.5, code=2)
    assert "optim.lr: 0.001 -> 0.5" in printed and "teacher.momentum: 0.9 -> 0.5" in printed
    folder = runs.out / "checkpoints"
    found, _ = checkpoint.load_latest(folder)
    assert found is not None
    checkpoint.save(folder, 2, found.tensors, found.state | {"format": 99}, keep=2)
    assert "written by a newer version (format 99, 2 is the newest known); update selfpatch" in runs.run(code=2)


def test_row_30_a_network_file_system_is_asked_again_and_then_it_is_an_error(runs, unbroken):
    def away(times: int):
        """Every file is stale so many times before it is read."""

        def fault() -> None:
            from selfpatch.data.reading import image_file

            read, failed = image_file._read_bytes, {}

            def stale(path, limit):
                failed[path] = failed.get(path, 0) + 1
                if failed[path] <= times:
                    raise OSError(errno.ESTALE, "Stale file handle", str(path))
                return read(path, limit)

            image_file._read_bytes = stale
            transient_errors.PAUSES = (0.0, 0.0, 0.0)

        return fault

    runs.run(fault=away(3))
    assert_same_run(runs.out, unbroken)
    assert not (runs.out / "bad_images.txt").exists()
    printed = runs.run(fault=away(10**9), out=runs.folder / "never", code=2)
    assert "can be read" in printed and "Stale file handle" in printed


def test_row_30_pauses_between_tries_grow(monkeypatch):
    slept: list[float] = []
    monkeypatch.setattr(transient_errors.time, "sleep", slept.append)

    def away():
        raise OSError(errno.EIO, "Input/output error")

    with pytest.raises(OSError, match="Input/output error"):
        transient_errors.retried(away)
    assert slept == [0.1, 1.0, 5.0]
    slept.clear()
    with pytest.raises(FileNotFoundError):
        transient_errors.retried(Path("/no/such/file").read_bytes)
    assert not slept


def test_row_36_retention_never_deletes_the_newest_valid_checkpoint(runs, unbroken):
    """Those that follow in the name and are damaged push out none."""
    runs.run("--run.stop-at-step", 4, "--run.max-to-keep", 1, "--run.save-every", 1)
    assert checkpoints(runs.out) == [4]
    for step in (90, 91, 92):
        copy = runs.out / "checkpoints" / f"step-{step:08d}"
        shutil.copytree(runs.out / "checkpoints" / "step-00000004", copy)
        (copy / "model.safetensors").write_bytes(b"damaged")
    runs.run("--run.stop-at-step", 5, "--run.max-to-keep", 1)
    assert checkpoints(runs.out) == [5]
    runs.run()
    assert_same_run(runs.out, unbroken)


def test_row_37_saving_slower_than_its_interval_holds_one_checkpoint_at_a_time(runs):
    """Training waits for the disk: no second copy of the state is made before the first is written."""

    def slow() -> None:
        save, busy = checkpoint.save, threading.Lock()

        def counted(*args, **kwargs):
            assert busy.acquire(blocking=False), "two at a time"
            try:
                os.sync()
                return save(*args, **kwargs)
            finally:
                busy.release()

        checkpoint.save = counted

    runs.run("--run.save-every", 1, "--run.max-to-keep", 2, fault=slow)
    assert checkpoints(runs.out) == [5, 6]
    assert steps_logged(runs.out) == list(range(1, NUM_STEPS + 1))
    memory = [line["memory_mb"] for line in metrics(runs.out)]
    assert memory[-1] < memory[1] + 100
