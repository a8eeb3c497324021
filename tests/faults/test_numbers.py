"""Rows 14 to 18, 29, 32, 33 and 35: losses and gradients, clocks, memory and terminals that go wrong."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch

from selfpatch.pretraining import train_step
from tests.faults.command import LIMIT, NUM_STEPS, at_step, checkpoints, losses, metrics, steps_logged

ROOT = Path(__file__).parents[2]


def test_row_14_nan_on_one_rank_for_one_step_is_skipped_by_all_and_counted(runs):
    nan = losses(lambda step, loss: loss * float("nan") if step == 2 else loss)
    ranks = runs.start_ranks(faults={1: nan})
    assert [rank.wait() for rank in ranks] == [0, 0], [rank.printed for rank in ranks]
    assert ranks[0].printed.count("step 3: the loss or a gradient is not finite; the step is skipped") == 1
    assert metrics(runs.out)[-1]["skipped_steps"] == 1
    assert steps_logged(runs.out) == [1, 2, 4, 5, 6]


def test_row_15_nan_for_good_stops_with_term_step_and_files_and_keeps_good_checkpoints(runs):
    nan = losses(lambda step, loss: loss * float("nan") if step >= 3 else loss)
    printed = runs.run(
        "--optim.steps", 100, "--run.save-every", 1, "--run.max-skipped", 9, "--evaluate.every-steps", 4,
        fault=nan, code=1,
    )  # fmt: skip
    assert "9 steps in a row were skipped, the last is step 12 (seed 0): these are not finite: loss" in printed
    assert "Its images begin with " in printed and "optim.lr" in printed
    assert checkpoints(runs.out) == [1, 2, 3]


def test_row_16_an_infinite_gradient_of_a_finite_loss_is_skipped(runs):
    class Infinite(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            return gradient * float("inf")

    printed = runs.run(fault=losses(lambda step, loss: Infinite.apply(loss) if step == 2 else loss))
    assert "step 3: the loss or a gradient is not finite" in printed
    assert metrics(runs.out)[-1]["skipped_steps"] == 1
    assert all(abs(line["loss"]) < 100 for line in metrics(runs.out))


def test_row_17_a_loss_of_ten_times_the_usual_warns_once(runs):
    spike = losses(lambda step, loss: 20 * loss if step in (8, 9) else loss)
    printed = runs.run("--optim.steps", 12, "--run.log-every", 1, fault=spike)
    assert printed.count("warning: the loss of a step was ") == 1
    assert "is usual" in printed


def test_row_18_collapse_is_named_with_its_cause_and_remedy(runs):
    printed = runs.run("--teacher.momentum", 0, "--teacher.momentum-end", 0)
    assert "health COLLAPSED (no moving average)" in printed
    assert "Set teacher.momentum to 0.99 or more" in printed


def test_row_29_a_clock_that_jumps_changes_neither_order_nor_durations(runs):
    def jump() -> None:
        now = iter(range(10**9, 0, -(10**6)))
        time.time = lambda: float(next(now))

    runs.run("--run.stop-at-step", 4, fault=jump)
    newest = runs.out / "checkpoints" / "step-00000004"
    os.utime(newest, (0, 0))  # by its date the oldest
    assert "step-00000004 at step 4" in runs.run(fault=jump)
    assert steps_logged(runs.out) == list(range(1, NUM_STEPS + 1))
    assert all(line["images_per_second"] > 0 and 0 <= line["data_wait"] <= 1 for line in metrics(runs.out))


def test_row_32_host_memory_that_runs_out_is_told_with_the_peak(runs):
    """The allocator's own refusal: 8 petabytes."""
    printed = runs.run(fault=at_step(3, lambda: torch.empty(2**53, dtype=torch.uint8)), code=1)
    assert "out of memory on this machine: this process had at most" in printed
    assert "--efficiency.num-workers" in printed and "--optim.batch-size" in printed
    assert checkpoints(runs.out) == [2]


def test_row_33_gpu_memory_that_runs_out_is_told_with_batch_and_crops(runs):
    def full() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    printed = runs.run(fault=at_step(3, full), code=1)
    assert "out of memory on the GPU" in printed
    assert "--optim.batch-size" in printed and "--crops.global-size" in printed
    assert checkpoints(runs.out) == [2]


def test_row_35_a_terminal_that_is_closed_does_not_stop_the_run(runs):
    """A pseudo-terminal, its bar and lines, whose other end goes away after the first step."""
    ours, theirs = os.openpty()
    here, on = runs.folder / "here", runs.folder / "on"
    os.mkfifo(on)
    script = (
        "import sys; from pathlib import Path; from tests.faults.command import at_step; from selfpatch import cli\n"
        f"at_step(2, lambda: (Path({str(here)!r}).touch(), Path({str(on)!r}).read_bytes()))()\n"
        f"sys.exit(cli.main({runs.arguments('--evaluate.every-steps', 4)!r}))"
    )
    environ = os.environ | {"PYTHONPATH": str(ROOT), "TERM": "xterm"}
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdin=theirs, stdout=theirs, stderr=subprocess.DEVNULL, env=environ,
        start_new_session=True,
    )  # fmt: skip
    try:
        os.close(theirs)
        give_up = time.monotonic() + LIMIT
        while not here.exists() and process.poll() is None and time.monotonic() < give_up:
            os.set_blocking(ours, False)
            try:
                os.read(ours, 65536)
            except (BlockingIOError, OSError):
                time.sleep(0.01)
        assert here.exists()
        os.close(ours)
        on.write_bytes(b"go")
        assert process.wait(LIMIT) == 0
    finally:
        process.kill()
        process.wait()
    assert steps_logged(runs.out) == list(range(1, NUM_STEPS + 1))
    assert checkpoints(runs.out)[-1] == NUM_STEPS


def test_row_35_a_terminal_that_hangs_up_stops_and_saves(runs):
    printed = runs.run(fault=at_step(2, lambda: os.kill(os.getpid(), signal.SIGHUP)), code=128 + signal.SIGHUP)
    assert "stopped after 3 of 6 steps, saved" in printed
    assert train_step.apply_gradients.__name__ == "apply_gradients"  # faults stay in their process
