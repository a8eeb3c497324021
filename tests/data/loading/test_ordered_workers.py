"""Results in the order of the tasks, and an orderly end whatever happens to a worker or to the main process."""

import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from selfpatch.data.loading.ordered_workers import MAX_TASKS_PER_WORKER, OrderedWorkers, WorkerError, WorkerTraceback


def pids() -> set[int]:
    return {process.pid for process in multiprocessing.active_children()}


def slow_first(task: int) -> tuple[int, int]:
    time.sleep(0.3 if task == 0 else 0)
    return task, os.getpid()


@pytest.mark.parametrize("num_workers", [0, 1, 2, 3])
def test_results_come_in_the_order_of_the_tasks(num_workers):
    """Also when a later one is ready first, and when there are fewer tasks than workers."""
    with OrderedWorkers(slow_first, num_workers, timeout_s=60) as workers:
        for task in range(2):
            workers.submit(task)
        results = []
        for task in range(2, 9):
            workers.submit(task)
            results.append(workers.next_result())
        results += [workers.next_result() for _ in range(2)]
    assert [task for task, _ in results] == list(range(9))
    pid_of = [pid for _, pid in results]
    turn = max(num_workers, 1)
    assert len(set(pid_of)) == turn  # each in its turn
    assert all(pid_of[i] == pid_of[i % turn] for i in range(9))
    assert not pids()


def test_in_this_process_nothing_is_done_ahead():
    done = []
    workers = OrderedWorkers(done.append, 0, timeout_s=60)
    workers.submit(1)
    workers.submit(2)
    assert done == []
    workers.next_result()
    assert done == [1]


class TwoArguments(Exception):  # noqa: N818
    """Does not survive a pipe: pickle calls it with one argument."""

    def __init__(self, a: str, b: str):
        super().__init__(a + b)


def fail(task: str) -> str:
    if task == "key":
        raise KeyError("a name")
    if task == "two":
        raise TwoArguments("a", "b")
    return task


def test_exceptions_are_those_of_the_function():
    with OrderedWorkers(fail, 1, timeout_s=60) as workers:
        for task in ("key", "two", "fine"):
            workers.submit(task)
        with pytest.raises(KeyError, match="a name") as caught:
            workers.next_result()
        assert isinstance(caught.value.__cause__, WorkerTraceback)
        assert 'raise KeyError("a name")' in str(caught.value.__cause__)
        with pytest.raises(RuntimeError, match="^TwoArguments: ab$"):
            workers.next_result()
        assert workers.next_result() == "fine"


def die(how: str) -> str:
    if how == "exit":
        os._exit(3)
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    return how


@pytest.mark.parametrize(("how", "words"), [("exit", "exit code 3"), ("kill", "SIGKILL")])
def test_a_worker_that_dies(how, words):
    """Is named when its result is due: earlier ones come, and later tasks may be submitted to it."""
    with OrderedWorkers(die, 2, timeout_s=60) as workers:
        for task in ("fine", "well", "good", how):
            workers.submit(task)
        assert [workers.next_result() for _ in range(3)] == ["fine", "well", "good"]
        time.sleep(0.5)
        workers.submit("more")
        workers.submit("more")
        started = time.monotonic()
        with pytest.raises(WorkerError, match=rf"^process \d+ died \({words}\)$"):
            workers.next_result()
        assert time.monotonic() - started < 2
    assert not pids()


def test_a_stopped_worker_is_named_and_ended():
    """SIGTERM would not reach it."""
    with OrderedWorkers(str, 2, timeout_s=1) as workers:
        (stopped, *_) = pids()
        os.kill(stopped, signal.SIGSTOP)
        workers.submit(1)
        workers.submit(2)
        started = time.monotonic()
        with pytest.raises(WorkerError, match=rf"^process {stopped} has given no result for 1 s$"):
            while True:
                workers.next_result()
        assert 0.9 < time.monotonic() - started < 2
    assert not pids()
    assert time.monotonic() - started < 3


def test_submitting_never_blocks():
    """As many tasks as are allowed, of 256 bytes, to a worker that takes none."""
    with OrderedWorkers(len, 1, timeout_s=60) as workers:
        os.kill(*pids(), signal.SIGSTOP)
        for _ in range(MAX_TASKS_PER_WORKER):
            workers.submit(bytes(200))
        os.kill(*pids(), signal.SIGCONT)
        assert [workers.next_result() for _ in range(MAX_TASKS_PER_WORKER)] == [200] * MAX_TASKS_PER_WORKER


def test_unused_ones_end():
    workers = OrderedWorkers(str, 2, timeout_s=60)
    assert len(pids()) == 2
    del workers
    gc.collect()
    assert not pids()


# What follows needs a main process of its own.

HEAD = """
import multiprocessing, os, signal, sys, time
from selfpatch.data.loading.ordered_workers import OrderedWorkers
workers = OrderedWorkers(time.sleep, 3, timeout_s=1)
pids = [process.pid for process in multiprocessing.active_children()]
print(*pids, flush=True)
"""


def run(script: str) -> tuple[int, str, list[int]]:
    command = [sys.executable, "-W", "error", "-c", HEAD + script]
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as errors:  # workers may outlive a pipe
        returncode = subprocess.run(command, stdout=out, stderr=errors, timeout=120).returncode
        out.seek(0)
        errors.seek(0)
        return returncode, errors.read(), [int(pid) for pid in out.read().split()]


def ends(pid: int, within_s: float) -> bool:
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except FileNotFoundError:
            return True
        time.sleep(0.02)
    return False


@pytest.mark.parametrize("num_stopped", [0, 1])
def test_workers_end_with_a_main_process_that_is_killed(num_stopped):
    """Busy ones too, and those that a stopped one was started after; it ends when it goes on."""
    returncode, _, pids = run(f"""
for pid in sorted(pids)[3 - {num_stopped}:]:
    os.kill(pid, signal.SIGSTOP)
for _ in pids:
    workers.submit(1000)
time.sleep(0.2)
os.kill(os.getpid(), signal.SIGKILL)
""")
    assert returncode == -signal.SIGKILL
    assert len(pids) == 3
    pids.sort()
    assert all(ends(pid, within_s=1.5) for pid in pids[: 3 - num_stopped])
    for pid in pids[3 - num_stopped :]:
        os.kill(pid, signal.SIGCONT)
        assert ends(pid, within_s=1.5)


def test_time_in_which_the_job_is_suspended_does_not_count():
    """As by Ctrl-Z, or by a scheduler that makes room for another job."""
    script = HEAD.replace("timeout_s=1", "timeout_s=2") + "workers.submit(2.5)\nworkers.next_result()\n"
    command = [sys.executable, "-W", "error", "-c", script]
    with subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True) as job:
        job.stdout.readline()
        time.sleep(0.3)
        os.killpg(job.pid, signal.SIGSTOP)
        time.sleep(2.5)
        os.killpg(job.pid, signal.SIGCONT)
        assert job.wait(60) == 0


def test_the_main_process_ends_soon_after_a_worker_stopped():
    started = time.monotonic()
    returncode, errors, pids = run(
        "os.kill(pids[0], signal.SIGSTOP)\nfor _ in pids: workers.submit(0)\nwhile True: workers.next_result()"
    )
    assert returncode == 1
    assert f"WorkerError: process {pids[0]} has given no result for 1 s" in errors
    assert all(ends(pid, within_s=0.1) for pid in pids)
    assert time.monotonic() - started < 60
