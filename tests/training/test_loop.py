"""The training loop: how much of a run's time goes into what nobody asked for."""

from typing import Any

import pytest
import torch

from selfpatch.output.metric_logger import MetricLogger
from selfpatch.output.progress import TrainingProgress
from selfpatch.training import loop
from selfpatch.training.loop import PeriodicCallback, StepOutput, train


class Clock:
    """Stands in for `time` in the loop: nothing takes time but what says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


class Steps:
    """A task whose every step takes a second."""

    batch_size = 1

    def __init__(self, clock: Clock):
        self._clock = clock

    def train_mode(self) -> None:
        pass

    def step(self, batch: Any, step: int) -> StepOutput:
        self._clock.now += 1
        return StepOutput({"loss": torch.tensor(1.0)}, True)

    def log_scalars(self, step: int) -> dict[str, float]:
        return {}

    def log_message(self, means: dict[str, float], *, last: bool) -> str | None:
        return None

    def divergence_hint(self, step: int, metrics: dict[str, torch.Tensor]) -> str:
        return ""


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(loop, "time", clock)
    return clock


def run(clock: Clock, tmp_path, callbacks: list[PeriodicCallback], *, num_steps: int = 400) -> None:
    train(
        Steps(clock), iter(range(num_steps)), first_step=0, num_steps=num_steps, seed=0, log_every=num_steps,
        max_skipped=1, device=torch.device("cpu"), logger=MetricLogger(tmp_path / "metrics.jsonl"),
        progress=TrainingProgress(0, num_steps), callbacks=callbacks,
    )  # fmt: skip


class Callback:
    """Takes some seconds, and remembers when it was called."""

    def __init__(self, clock: Clock, seconds: float):
        self._clock, self._seconds = clock, seconds
        self.steps: list[int] = []

    def __call__(self, done: int) -> dict[str, float]:
        self.steps.append(done)
        self._clock.now += self._seconds
        return {}


def test_what_nobody_asked_for_takes_a_twentieth_of_the_time(clock, tmp_path):
    saving = Callback(clock, 2.0)
    run(clock, tmp_path, [PeriodicCallback(1, saving, within_budget=True)])
    assert saving.steps[0] > 30
    assert 0.04 < 2 * len(saving.steps) / clock.now < 0.06
    assert saving.steps[-1] == 400


def test_what_was_asked_for_always_comes_and_leaves_the_budget_alone(clock, tmp_path):
    """Long scores must not keep a run from its checkpoints."""
    scores, saving = Callback(clock, 10.0), Callback(clock, 0.1)
    run(clock, tmp_path, [PeriodicCallback(10, scores), PeriodicCallback(40, saving, within_budget=True)])
    assert scores.steps == list(range(10, 401, 10))
    assert saving.steps == list(range(40, 401, 40))


def test_a_run_of_a_minute_has_time_for_one_picture(clock, tmp_path):
    """The last one, always: with another before it a tenth of the time would go into them."""
    pictures = Callback(clock, 3.0)
    run(clock, tmp_path, [PeriodicCallback(2, pictures, within_budget=True)], num_steps=60)
    assert pictures.steps == [60]


def test_a_second_picture_is_drawn_when_there_is_time_for_it_and_for_the_last(clock, tmp_path):
    pictures = Callback(clock, 3.0)
    run(clock, tmp_path, [PeriodicCallback(10, pictures, within_budget=True)], num_steps=210)
    assert 3.0 * len(pictures.steps) <= 0.05 * clock.now
