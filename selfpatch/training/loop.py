"""The training loop, in numbered steps, of pretraining and of evaluation heads alike.

The caller hands in the task (losses, how a step changes weights) and the callbacks (scores, pictures, saving).
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from selfpatch.distributed import (
    any_rank,
    from_rank_0,
    global_max,
    global_mean,
    reported_once,
    seconds_waited,
    wait_for_all,
)
from selfpatch.output.metric_logger import MetricLogger
from selfpatch.output.progress import TrainingProgress
from selfpatch.training.memory import peak_memory_mb
from selfpatch.training.slow_ranks import RankBalance, StackWatchdog

# Fraction of a run's time for pictures and checkpoints that nobody asked for, and seconds before the first of them.
MAX_BOOKKEEPING, QUIET_SECONDS = 0.05, 60.0


class DivergenceError(RuntimeError):
    """Step after step without a finite loss and gradient."""


class StepOutput(NamedTuple):
    """The outcome of one optimizer step."""

    metrics: dict[str, Tensor]  # scalars without gradient: "loss", each objective's ("NAME/loss"), signals
    applied: bool  # False: something was not finite on some rank, and nothing has changed


@runtime_checkable
class TrainTask(Protocol):
    """A training as the loop sees it: it knows its losses, and how a step changes its weights."""

    batch_size: int  # images per step, over all ranks

    def train_mode(self) -> None:
        """Put its modules in training mode."""
        ...

    def step(self, batch: Any, step: int) -> StepOutput:
        """One optimizer step, or nothing at all if something is not finite on any rank."""
        ...

    def log_scalars(self, step: int) -> dict[str, float]:
        """Values for the log as they stand after this step: learning rate, counts."""
        ...

    def log_message(self, means: dict[str, float], *, last: bool) -> str | None:
        """A message for the terminal beside this line of the log, or the last one; None: nothing to report."""
        ...

    def divergence_hint(self, step: int, metrics: dict[str, Tensor]) -> str:
        """Likely cause and remedy after many steps in a row that were not finite."""
        ...


# Called with the number of steps done; the values it returns are logged.
Callback = Callable[[int], dict[str, float]]


class PeriodicCallback(NamedTuple):
    """A callback every `steps` steps and after the last.

    Args:
        at_start, at_stop: also before the first step, or when the run is stopped.
        within_budget: nobody asked for it; left out while such callbacks, with this one now and after the last step,
            take more than MAX_BOOKKEEPING of the time.
        saves: not after a step that was skipped: weights that diverge would take the places of those before.
    """

    steps: int
    callback: Callback
    at_start: bool = False
    at_stop: bool = False
    within_budget: bool = False
    saves: bool = False


def train(
    task: TrainTask,
    batches: Iterator[Any],
    *,
    first_step: int,
    num_steps: int,
    seed: int,
    log_every: int,
    max_skipped: int,
    device: torch.device,
    logger: MetricLogger,
    progress: TrainingProgress,
    callbacks: Sequence[PeriodicCallback] = (),
    should_stop: Callable[[int], bool] = lambda done: False,
    stacks_after_s: float = float("inf"),
) -> int:
    """Train from `first_step` to `num_steps`, or until `should_stop(steps done)`; returns the number of steps done.

    Random numbers of torch are drawn anew from (seed, step) at every step, so that a run that goes on sees the same
    ones. Ranks draw alike: what is random about an image (stochastic depth) takes its part of those of all images.

    Args:
        stacks_after_s: of several processes, each prints where it is when a step takes longer.

    Every rank calls the callbacks, in which rank 0 alone computes or writes, and then waits for the others.

    Raises:
        DivergenceError: `max_skipped` steps in a row were not finite; the weights are as they were before them.
    """
    window = MetricWindow(task.batch_size)
    skipped_in_a_row = 0
    budget, balance, watchdog = BookkeepingBudget(), RankBalance(), StackWatchdog(stacks_after_s)
    task.train_mode()

    def call(periodic: PeriodicCallback, done: int) -> None:
        with window.paused(), budget.spending(periodic) if periodic.within_budget else nullcontext():
            if values := periodic.callback(done):
                logger.log(done, values)
            wait_for_all()
        task.train_mode()

    if first_step == 0:
        for periodic in callbacks:
            if periodic.at_start:
                call(periodic, 0)

    for step in range(first_step, num_steps):
        # 1. The batch of this step, made while the step before was computed.
        with watchdog.watching(step), window.waiting():
            batch = next(batches)

        # 2. Losses, gradients, and everything that a step changes; or nothing, if something is not finite on any rank.
        torch.manual_seed((seed * 1_000_003 + step) * 4096)
        with watchdog.watching(step):
            metrics, applied = task.step(batch, step)

        # 3. Steps that were not finite are counted; many in a row end the run.
        if applied:
            window.add(metrics)
            skipped_in_a_row = 0
        else:
            skipped_in_a_row += 1
            progress.say(f"step {step + 1}: the loss or a gradient is not finite; the step is skipped")
            if skipped_in_a_row >= max_skipped:
                raise reported_once(
                    DivergenceError(
                        f"{skipped_in_a_row} steps in a row were skipped, the last is step {step + 1} (seed {seed}): "
                        f"{not_finite(metrics)}. {task.divergence_hint(step, metrics)}"
                    )
                )

        # 4. Log.
        done = step + 1
        progress.step(step)
        if (done % log_every == 0 or done == num_steps or done == first_step + 1) and window.count:
            means = window.means() | task.log_scalars(step)
            means["memory_mb"] = global_max(torch.tensor(peak_memory_mb(device), device=device)).item()
            values, slow_rank = balance.update(window.busy_seconds())
            logger.log(done, means | values)
            progress.show(step, means)
            note = task.log_message(means | {"loss_max": window.largest_loss()}, last=done == num_steps)
            for message in filter(None, (note, slow_rank)):
                progress.say(message)
            window = MetricWindow(task.batch_size)

        # 5. Now and then: scores, pictures, checkpoints. On a signal every rank stops at the same step, and saves.
        stop = any_rank(should_stop(done), device)
        for periodic in callbacks:
            due = done % periodic.steps == 0 and (not periodic.within_budget or from_rank_0(budget.is_left(periodic)))
            due = due and (applied or not periodic.saves)
            if due or done == num_steps or (stop and periodic.at_stop):
                call(periodic, done)
        if stop:
            return done
    return num_steps


class BookkeepingBudget:
    """Time that callbacks which nobody asked for have taken, as a fraction of the run's."""

    def __init__(self) -> None:
        self._start, self._spent = time.perf_counter(), 0.0
        self._last: dict[PeriodicCallback, float] = {}  # seconds that each took the last time

    def is_left(self, periodic: PeriodicCallback) -> bool:
        elapsed = time.perf_counter() - self._start
        expected = self._spent + 2 * self._last.get(periodic, 0.0)  # once now, and once after the last step
        return elapsed > QUIET_SECONDS and expected < MAX_BOOKKEEPING * elapsed

    @contextmanager
    def spending(self, periodic: PeriodicCallback) -> Iterator[None]:
        start = time.perf_counter()
        yield
        seconds = time.perf_counter() - start
        self._spent += seconds
        self._last[periodic] = seconds


class MetricWindow:
    """Means over the steps between two lines of the log, and what share of the time went into waiting for data."""

    def __init__(self, batch_size: int):
        self._batch_size = batch_size
        self._sums: dict[str, Tensor] = {}
        self._start = time.perf_counter()
        self._waited = 0.0
        self._waited_for_ranks = seconds_waited()
        self._largest_loss: Tensor | None = None
        self.count = 0

    def add(self, metrics: dict[str, Tensor]) -> None:
        for name, value in metrics.items():
            self._sums[name] = self._sums[name] + value if name in self._sums else value
        if "loss" in metrics:
            loss = metrics["loss"]
            self._largest_loss = loss if self._largest_loss is None else torch.maximum(self._largest_loss, loss)
        self.count += 1

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time inside as waiting for data."""
        start = time.perf_counter()
        yield
        self._waited += time.perf_counter() - start

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave the time inside out."""
        start, waited = time.perf_counter(), seconds_waited()
        yield
        self._start += time.perf_counter() - start
        self._waited_for_ranks += seconds_waited() - waited

    def busy_seconds(self) -> float:
        """Time in which this rank did not wait for others, waiting for its own data included."""
        return time.perf_counter() - self._start - (seconds_waited() - self._waited_for_ranks)

    def largest_loss(self) -> float:
        """Of a single step, over all ranks' shares of it; not finite if no step has a loss."""
        if self._largest_loss is None:
            return float("nan")
        return global_max(self._largest_loss.float()).item()

    def means(self) -> dict[str, float]:
        """Over the steps and over ranks; the longest wait of any rank, for which the others wait in turn."""
        values = global_mean(torch.stack([value.float() for value in self._sums.values()]).div(self.count)).tolist()
        seconds = time.perf_counter() - self._start
        waited = global_max(torch.tensor(self._waited / seconds, device=next(iter(self._sums.values())).device)).item()
        rates = {"images_per_second": self.count * self._batch_size / seconds, "data_wait": waited}
        return dict(zip(self._sums, values, strict=True)) | rates


def not_finite(metrics: dict[str, Tensor]) -> str:
    losses = [name for name, value in metrics.items() if name.endswith("loss") and not torch.isfinite(value)]
    return f"these are not finite: {', '.join(losses)}" if losses else "the losses are finite, a gradient is not"
