"""Rows 2, 4, 11, 25 to 28 and 38: several processes, of which one dies, hangs, is slow or differs."""

import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from selfpatch.output import checkpoint
from tests.distributed.test_devices import rank_1_of
from tests.faults.command import (
    FORK,
    LIMIT,
    NUM_STEPS,
    at_step,
    checkpoints,
    free_port,
    kill_self,
    metrics,
    steps_logged,
)

ROOT = Path(__file__).parents[2]
# Killed ranks in a row, as a soak: SELFPATCH_SOAK=20 pytest tests/faults -k row_04
NUM_KILLS = int(os.environ.get("SELFPATCH_SOAK", "1"))


def test_row_02_sigusr2_to_one_rank_stops_all_at_the_same_step(runs):
    ranks = runs.start_ranks(faults={1: at_step(2, kill_self(signal.SIGUSR2))})
    assert [rank.wait() for rank in ranks] == [128 + signal.SIGUSR2] * 2
    assert "stopped after 3 of 6 steps, saved" in ranks[0].printed
    assert checkpoints(runs.out) == [2, 3]


def test_row_04_sigkill_of_a_rank_ends_its_peers_in_time(runs):
    ranks = runs.start_ranks("--run.rank-timeout-s", 30, faults={1: at_step(3, kill_self())})
    assert ranks[1].wait() == -signal.SIGKILL
    assert ranks[0].wait(limit=60) == 1
    assert "rank 0 has no answer from another process" in ranks[0].printed
    assert checkpoints(runs.out) == [2]


@pytest.mark.timeout(300 * NUM_KILLS)
def test_row_04_sigkill_of_a_rank_under_torchrun_restarts_and_ends_as_unbroken(runs, tmp_path):
    """At a random step; the weights are those of two ranks to which nothing happened."""
    expected = runs.folder / "two"
    unbroken = runs.start_ranks("--optim.steps", 8, "--run.save-every", 2)
    assert [rank.wait() for rank in unbroken] == [0, 0]
    runs.out.rename(expected)
    theirs, _ = checkpoint.load_latest(expected / "checkpoints")
    seed = random.randrange(10**6)
    print(f"seed {seed}")
    for number in range(NUM_KILLS):
        kill_at = random.Random(seed + number).randrange(2, 8)
        out = tmp_path / f"killed-{number}"
        torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--max-restarts", "1"]
        options = runs.arguments("--optim.steps", 8, "--run.save-every", 2, out=out)
        environ = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
        with (tmp_path / "printed.txt").open("w+") as printed:
            agent = subprocess.Popen(
                [sys.executable, *torchrun, "-m", "selfpatch", *options], env=environ, stdout=printed, stderr=printed
            )
            try:
                give_up = time.monotonic() + LIMIT
                log = out / "metrics.jsonl"
                while not log.exists() or log.read_text().count("\n") < kill_at:
                    assert agent.poll() is None and time.monotonic() < give_up
                    time.sleep(0.002)
                os.kill(rank_1_of(agent.pid), signal.SIGKILL)
                assert agent.wait(200) == 0, Path(printed.name).read_text()
            finally:
                agent.terminate()
                agent.wait()
        ours, _ = checkpoint.load_latest(out / "checkpoints")
        assert ours is not None and theirs is not None
        for group, tensors in theirs.tensors.items():
            assert all(torch.equal(value, ours.tensors[group][name]) for name, value in tensors.items())
        assert steps_logged(out) == list(range(1, 9))
        print(f"kill {number + 1} of {NUM_KILLS}: after step {kill_at}, weights and log as unbroken")


def test_row_11_a_checkpoint_of_two_ranks_goes_on_with_one_and_of_one_with_two(runs, unbroken):
    ranks = runs.start_ranks("--run.stop-at-step", 3)
    assert [rank.wait() for rank in ranks] == [0, 0]
    assert "step-00000003 at step 3" in runs.run("--run.stop-at-step", 4)
    ranks = runs.start_ranks()
    assert [rank.wait() for rank in ranks] == [0, 0]
    assert "step-00000004 at step 4" in ranks[0].printed
    found, expected = ([line["loss"] for line in metrics(out)] for out in (runs.out, unbroken))
    assert len(found) == NUM_STEPS
    assert found == pytest.approx(expected, rel=1e-4)


def test_row_25_a_rank_that_hangs_ends_all_with_stacks_of_all(runs):
    never = FORK.Event()

    def the_rank_that_hangs() -> None:
        never.wait(LIMIT)

    # 20 s to meet and in a step: forked processes of a busy machine need some.
    ranks = runs.start_ranks("--run.rank-timeout-s", 20, faults={1: at_step(3, the_rank_that_hangs)})
    assert ranks[0].wait() == 1
    assert "did not come to the same step within 20 s" in ranks[0].printed
    for number, rank in enumerate(ranks):
        assert f"rank {number} (process {rank.pid} on " in rank.printed
        assert "is in step 4 for 16 s" in rank.printed
    assert "in the_rank_that_hangs" in ranks[1].printed and "in the_rank_that_hangs" not in ranks[0].printed
    never.set()
    assert ranks[1].wait() == 1


def test_row_26_a_slow_rank_shows_in_the_log(runs):
    """One second more for its part of every step, which the other waits for in the sums over ranks."""

    def slow() -> None:
        from selfpatch.pretraining import train_step

        make_views = train_step.make_views

        def slowly(*args, **kwargs):
            time.sleep(1)
            return make_views(*args, **kwargs)

        train_step.make_views = slowly

    ranks = runs.start_ranks("--optim.steps", 5, faults={1: slow})
    assert [rank.wait() for rank in ranks] == [0, 0]
    assert ranks[0].printed.count("warning: rank 1 is slow: its own work takes") == 1
    lines = metrics(runs.out)
    assert [line["slowest_rank"] for line in lines[1:]] == [1] * 4


def test_row_27_ranks_with_different_settings_are_refused_at_the_start(runs):
    ranks = runs.start_ranks(options_of={1: ("--optim.lr", 0.5)})
    assert [rank.wait() for rank in ranks] == [2, 2]
    assert "rank 1 was started with other settings than rank 0" in ranks[1].printed
    assert "optim.lr: 0.001 -> 0.5" in ranks[1].printed
    assert not runs.out.exists()


@pytest.mark.parametrize("rank", [0, 1])
def test_row_28_a_port_in_use_and_a_master_that_is_away_are_waited_for_in_bounds(rank, runs):
    """Rank 0 finds its port in use by another program; rank 1 finds that program, which says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        for used in (True, False):
            environ = {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo",
                       "MASTER_PORT": str(port if used else free_port())}  # fmt: skip
            printed = runs.run("--run.rank-timeout-s", 3, environ=environ, code=2, limit=60)
            assert (
                f"rank {rank} did not meet the other 1 processes at MASTER_ADDR and MASTER_PORT within 3 s" in printed
            )
            assert "no other program has its port" in printed
    assert not runs.out.exists()


def test_row_38_a_batch_that_ranks_cannot_share_is_no_deadlock(runs):
    ranks = runs.start_ranks("--optim.batch-size", 3)
    assert [rank.wait(limit=60) for rank in ranks] == [2, 2]
    assert "a batch of 3 images cannot be shared equally by 2 processes" in "".join(rank.printed for rank in ranks)
    assert not runs.out.exists()
