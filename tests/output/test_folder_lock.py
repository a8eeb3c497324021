"""A folder has one writer at a time, and is free as soon as that is gone, however it went."""

import os
import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from selfpatch.output.folder_lock import FolderLock


def test_one_at_a_time(tmp_path):
    with closing(FolderLock(tmp_path)) as first:
        first.take()
        first.take()
        with pytest.raises(ValueError, match=rf"{tmp_path} is in use by process {os.getpid()} on "):
            FolderLock(tmp_path).take()
    with closing(FolderLock(tmp_path)) as second:
        second.take()


def test_a_forked_child_neither_holds_nor_frees_it(tmp_path):
    with closing(FolderLock(tmp_path)) as lock:
        lock.take()
        if (child := os.fork()) == 0:
            signal.pause()
        try:
            time.sleep(0.2)
            with pytest.raises(ValueError, match=f"in use by process {os.getpid()}"):
                FolderLock(tmp_path).take()
            lock.close()
            with closing(FolderLock(tmp_path)) as other:
                other.take()
        finally:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


# A run whose workers cannot notice that the main process is gone: they are stopped.
RUN = """
import multiprocessing, os, signal, sys, time
from pathlib import Path
from selfpatch.data.loading.ordered_workers import OrderedWorkers
from selfpatch.output.folder_lock import FolderLock
lock = FolderLock(Path(sys.argv[1]))
lock.take()
workers = OrderedWorkers(time.sleep, 2, timeout_s=60)
for _ in range(2):
    workers.submit(0)
for _ in range(2):  # they have begun
    workers.next_result()
for process in multiprocessing.active_children():
    os.kill(process.pid, signal.SIGSTOP)
    print(process.pid)
sys.stdout.flush()
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_free_at_once_after_a_run_was_killed(tmp_path):
    with (tmp_path / "pids").open("w+") as out:
        assert subprocess.run([sys.executable, "-c", RUN, tmp_path], stdout=out, timeout=120).returncode == -9
    pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
    try:
        assert len(pids) == 2
        assert all(Path(f"/proc/{pid}").exists() for pid in pids)
        with closing(FolderLock(tmp_path)) as lock:
            lock.take()
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
