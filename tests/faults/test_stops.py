"""Rows 1 to 6, 13, 34 and 39: signals, kills, and what a run that goes on finds."""

import json
import os
import signal
import threading

from selfpatch.output import atomic_files, checkpoint
from tests.faults.command import FORK, NUM_STEPS, assert_same_run, at_step, checkpoints, kill_self, steps_logged


def test_row_01_sigterm_to_all_processes_of_a_job_saves_and_exits_with_143(runs, unbroken):
    def to_all() -> None:
        os.killpg(0, signal.SIGTERM)  # the data worker too, as `timeout` and SLURM do

    printed = runs.run("--efficiency.num-workers", 1, fault=at_step(2, to_all), code=128 + signal.SIGTERM)
    assert "stopped after 3 of 6 steps, saved; the same command goes on from there" in printed
    assert checkpoints(runs.out)[-1] == 3
    runs.run()
    assert_same_run(runs.out, unbroken)


def test_row_03_a_second_signal_while_saving_leaves_whole_checkpoints(runs, unbroken):
    """SIGTERM, which is heeded once; then Ctrl-C, which ends the process in the middle of the files."""
    for number, code in ((signal.SIGTERM, 143), (signal.SIGINT, 130)):

        def twice(number=number) -> None:
            at_step(2, kill_self(signal.SIGTERM))()
            fsync = checkpoint.fsync

            def signalled(path) -> None:
                if path.name == "model.safetensors" and "step-00000003" in path.parent.name:
                    os.kill(os.getpid(), number)
                    if number == signal.SIGINT:  # still at this file when the process ends
                        threading.Event().wait(30)
                fsync(path)

            checkpoint.fsync = signalled

        runs.run(fault=twice, code=code)
        whole, skipped = checkpoint.load_latest(runs.out / "checkpoints")
        assert whole is not None and not skipped
        assert whole.state["step"] == (3 if number == signal.SIGTERM else 2)
        if number == signal.SIGTERM:
            runs.out = runs.folder / "again"
    runs.run()
    assert_same_run(runs.out, unbroken)


def test_row_05_sigkill_in_mid_save_leaves_the_checkpoint_before(runs, unbroken):
    def in_mid_save() -> None:
        save_file = checkpoint.save_file

        def killed(tensors, path):
            save_file(tensors, path)
            if "step-00000004" in path.parent.name:
                path.write_bytes(path.read_bytes()[:100])
                os.kill(os.getpid(), signal.SIGKILL)

        checkpoint.save_file = killed

    runs.run(fault=in_mid_save, code=-signal.SIGKILL)
    assert list((runs.out / "checkpoints").glob(".writing-*"))
    printed = runs.run()
    assert "step-00000002 at step 2" in printed
    assert_same_run(runs.out, unbroken)


def test_row_06_files_and_folder_are_on_the_disk_before_the_rename(tmp_path, monkeypatch):
    """A power loss at any moment leaves the old or the new: what is renamed is synced, and then its folder is."""
    import torch

    events: list[str] = []
    for module in (checkpoint, atomic_files):
        fsync = atomic_files.fsync

        def synced(path, fsync=fsync) -> None:
            events.append(f"fsync {path.name}")
            fsync(path)

        monkeypatch.setattr(module, "fsync", synced)
    rename, replace = type(tmp_path).rename, os.replace

    def renamed(path, target):
        events.append(f"rename {path.name}")
        return rename(path, target)

    def replaced(path, target):
        events.append(f"rename {os.path.basename(path)}")
        replace(path, target)

    monkeypatch.setattr(type(tmp_path), "rename", renamed)
    monkeypatch.setattr(os, "replace", replaced)
    checkpoint.save(tmp_path, 1, {"model": {"w": torch.ones(2)}}, {"step": 1}, keep=1)
    written = ".writing-step-00000001"
    files = {f"fsync {name}" for name in ("model.safetensors", "state.json", "manifest.json")}
    assert set(events[:3]) == files
    assert events[3:] == [f"fsync {written}", f"rename {written}", f"fsync {tmp_path.name}"]
    events.clear()
    with atomic_files.atomic_write(tmp_path / "metrics.jsonl") as file:
        file.write_text("{}")
    assert events == [f"fsync {file.name}", f"rename {file.name}", f"fsync {tmp_path.name}"]


def test_row_13_a_second_run_is_refused_and_a_dead_one_holds_nothing(runs, unbroken):
    """Its orphaned worker is stopped, so that it lives on: the lock is free all the same."""
    here, on = FORK.Event(), FORK.Event()

    def wait_here() -> None:
        here.set()
        on.wait(100)

    first = runs.start("--efficiency.num-workers", 1, fault=at_step(3, wait_here))
    assert here.wait(100)
    printed = runs.run(code=2)
    assert f"{runs.out} is in use by process {first.pid} on " in printed
    for child in children_of(first.pid):
        os.kill(child, signal.SIGSTOP)
    first.send(signal.SIGKILL)
    assert first.wait() == -signal.SIGKILL
    (runs.out / ".lock").write_bytes(b"\xff no json")  # nor does what the file holds matter
    runs.run()
    assert_same_run(runs.out, unbroken)


def test_row_13_a_deleted_lock_does_not_let_two_runs_write(runs):
    here, on = FORK.Event(), FORK.Event()

    def wait_here() -> None:
        here.set()
        on.wait(100)

    first = runs.start(fault=at_step(2, wait_here))
    assert here.wait(100)
    (runs.out / ".lock").unlink()
    there, never = FORK.Event(), FORK.Event()
    second = runs.start(fault=at_step(3, lambda: (there.set(), never.wait(100))))
    assert there.wait(100)
    on.set()
    assert first.wait() == 1
    assert f".lock was deleted while this run held it: {runs.out} is in use by process {second.pid}" in first.printed
    never.set()
    assert second.wait() == 0
    assert steps_logged(runs.out)[-1] == NUM_STEPS


def test_row_34_ctrl_c_once_is_graceful_and_twice_ends_at_once(runs, unbroken):
    """The second even while the run waits for a worker that never answers."""
    printed = runs.run(fault=at_step(1, kill_self(signal.SIGINT)), code=130)
    assert "stopped after 2 of 6 steps, saved" in printed
    here, on = FORK.Event(), FORK.Event()
    # Data are made ahead: the worker is stopped, and what it made is used up.
    command = runs.start("--efficiency.num-workers", 1, fault=at_step(2, lambda: (here.set(), on.wait(100))))
    assert here.wait(100)
    for child in children_of(command.pid):
        os.kill(child, signal.SIGSTOP)
    command.send(signal.SIGINT)
    on.set()
    command.send(signal.SIGINT)
    assert command.wait(limit=60) == 130
    runs.run()
    assert_same_run(runs.out, unbroken)


def test_row_39_stopped_after_every_step_ends_as_unbroken(runs, unbroken):
    for step in range(1, NUM_STEPS):
        runs.run("--run.stop-at-step", step, "--efficiency.num-workers", step % 2)
        state = json.loads((runs.out / "checkpoints" / f"step-{step:08d}" / "state.json").read_text())
        assert state["step"] == step
    runs.run()
    assert_same_run(runs.out, unbroken)


def children_of(pid: int) -> list[int]:
    from pathlib import Path

    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
