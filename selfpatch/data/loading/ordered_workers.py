"""Worker processes that take tasks in turn and give their results in the order of the tasks."""

import contextlib
import itertools
import multiprocessing
import os
import pickle
import signal
import threading
import traceback
from collections import deque
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from multiprocessing.util import Finalize
from typing import Any, Generic, NamedTuple, TypeVar

import cv2
import torch

TaskT = TypeVar("TaskT")
ResultT = TypeVar("ResultT")

# Tasks that may be in flight per worker: as many, of up to 256 bytes, fit into a pipe, so that `submit` never blocks.
MAX_TASKS_PER_WORKER = 256
# Terminals, `timeout` and SLURM send these to all processes of a job at once. The main process decides what they mean,
# finishes its step and saves; until then it needs its workers.
_SIGNALS_TO_A_JOB = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
_POLL_S = 0.5
# A process that was killed may still have to wait for its disk.
_JOIN_S = 5


class WorkerError(RuntimeError):
    """A worker died, or gave no result in time. The message names the process."""


class OrderedWorkers(Generic[TaskT, ResultT]):
    """Workers that apply a function to tasks: `submit` tasks, and `next_result` gives the result of the oldest one.

    Of n workers, worker i does the tasks i, i + n, i + 2n, ... one after the other and answers through its own pipe. So
    the oldest task's result is the next one from a known worker: that is all there is to the order.

    Args:
        function: inherited or pickled when the workers start. Tasks, results and exceptions go through pipes; large
            results belong into shared memory.
        num_workers: 0 applies the function in this process, when its result is asked for.
        timeout_s: how long `next_result` waits until a worker counts as hung; time in which this process was suspended
            does not count.
    """

    def __init__(self, function: Callable[[TaskT], ResultT], num_workers: int, *, timeout_s: float):
        self._function = function
        self._timeout_s = timeout_s
        self._workers: list[_Worker] = []
        self._in_flight: deque[tuple[TaskT, _Worker | None]] = deque()
        # When this object goes, or else before Python's own end of daemons, which waits for each to obey SIGTERM.
        self._finalizer = Finalize(self, _kill, args=(self._workers,), exitpriority=100)
        for _ in range(num_workers):
            self._workers.append(_Worker.start(function))
        self._turns = itertools.cycle(self._workers or [None])

    def __enter__(self) -> "OrderedWorkers[TaskT, ResultT]":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Kill the workers: they hold nothing that must be written or given back."""
        self._in_flight.clear()
        self._finalizer()

    def submit(self, task: TaskT) -> None:
        worker = next(self._turns)
        self._in_flight.append((task, worker))
        if worker is not None:
            worker.send(task)

    def next_result(self) -> ResultT:
        """The result of the oldest task in flight.

        Raises:
            WorkerError: its worker died or hangs.
            Exception: whatever the function raised, with the worker's traceback as its cause.
        """
        task, worker = self._in_flight.popleft()
        if worker is None:
            return self._function(task)
        answer = worker.receive(self._timeout_s)
        if answer.error is not None:
            raise answer.error from WorkerTraceback(answer.traceback)
        return answer.result


class WorkerTraceback(Exception):  # noqa: N818
    """The traceback of an exception in a worker, as text."""


class _Answer(NamedTuple):
    result: Any
    error: Exception | None = None
    traceback: str = ""


class _Worker(NamedTuple):
    """The main process's ends of a worker."""

    process: BaseProcess
    tasks: Connection
    answers: Connection

    @classmethod
    def start(cls, function: Callable[[Any], Any]) -> "_Worker":
        task_reader, task_writer = multiprocessing.Pipe(duplex=False)
        answer_reader, answer_writer = multiprocessing.Pipe(duplex=False)
        process = multiprocessing.Process(target=_work, args=(function, task_reader, answer_writer), daemon=True)
        process.start()
        # The worker's ends are open in the worker alone, so that they close when it dies.
        task_reader.close()
        answer_writer.close()
        return cls(process, task_writer, answer_reader)

    def send(self, task: Any) -> None:
        with contextlib.suppress(BrokenPipeError):  # it has died, which `receive` says when its turn comes
            self.tasks.send(task)

    def receive(self, timeout_s: float) -> _Answer:
        waited_s = 0.0
        while not (ready := wait([self.answers, self.process.sentinel], min(_POLL_S, timeout_s))):
            waited_s += _POLL_S
            if waited_s >= timeout_s:
                raise WorkerError(f"process {self.process.pid} has given no result for {timeout_s:g} s")
        try:
            if self.answers in ready:
                return self.answers.recv()
        except EOFError:
            pass
        self.process.join(_JOIN_S)
        raise WorkerError(f"process {self.process.pid} died ({_cause_of_death(self.process.exitcode)})")


def _cause_of_death(exit_code: int | None) -> str:
    return signal.Signals(-exit_code).name if exit_code is not None and exit_code < 0 else f"exit code {exit_code}"


def _kill(workers: list[_Worker]) -> None:
    for worker in workers:
        worker.process.kill()
    for worker in workers:
        worker.process.join(_JOIN_S)
        worker.tasks.close()
        worker.answers.close()


# In the worker


def _work(function: Callable[[Any], Any], tasks: Connection, answers: Connection) -> None:
    for number in _SIGNALS_TO_A_JOB:
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    while True:
        task = tasks.recv()
        try:
            answer = _Answer(function(task))
        except Exception as error:
            answer = _Answer(None, _picklable(error), "".join(traceback.format_exception(error)))
        answers.send(answer)


def _exit_with_parent() -> None:
    """End this process as soon as its parent is gone, however that ended: nobody else would."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    # The sentinel tells at once, but not while later workers, which inherited its other end, are stopped.
    while not wait([parent.sentinel], _POLL_S) and os.getppid() == parent.pid:
        pass
    os._exit(1)


def _picklable(error: Exception) -> Exception:
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
