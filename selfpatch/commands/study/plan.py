"""The plan of a study: how long every cell takes, from a few timed steps, and how many steps the hours allow."""

import itertools
import statistics
import time
from typing import Any, NamedTuple

import torch

from selfpatch.commands.pretrain import build_parts
from selfpatch.commands.run_setup.task_and_batches import task_and_batches
from selfpatch.config import PretrainConfig
from selfpatch.data.image_files import ImageFiles
from selfpatch.data.loading.device_prefetch import prefetch_to_device
from selfpatch.errors import UserError
from selfpatch.output.terminal import TextTable, say, show_table
from selfpatch.pretraining.parallel import OneProcess
from selfpatch.pretraining.student_teacher import apply_efficiency
from selfpatch.recipes.candidates import AS_IS, trains

NUM_TIMED = 4
# Fewer steps teach nothing.
MIN_STEPS = 50
# Seconds of a training besides its steps: loading, pictures, checkpoints.
BESIDE_STEPS = 5.0
# Fraction of the hours that is kept for what the plan does not know.
RESERVE = 0.1


class Timing(NamedTuple):
    """Seconds that one candidate takes.

    Args:
        step: of training.
        start: until the first step is done.
        scores: of all scores of one seed.
    """

    step: float
    start: float
    scores: float


class PlannedCandidate(NamedTuple):
    name: str
    num_seeds: int
    steps: int  # of one seed; 0: it is not trained
    timing: Timing

    @property
    def cell_seconds(self) -> float:
        """Of one seed."""
        training = BESIDE_STEPS + self.timing.start + self.steps * self.timing.step if self.steps else 0.0
        return training + self.timing.scores

    @property
    def seconds(self) -> float:
        return self.num_seeds * self.cell_seconds

    def as_json(self) -> dict[str, Any]:
        return self._asdict() | {"timing": self.timing._asdict(), "minutes": round(self.seconds / 60, 2)}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "PlannedCandidate":
        return cls(values["name"], values["num_seeds"], values["steps"], Timing(**values["timing"]))


def time_steps(config: PretrainConfig, source: ImageFiles, device: torch.device) -> tuple[float, float]:
    """Seconds of a step, the median of a few from the middle of the run, and of all before the first is done.

    Nothing is written, and nothing of it stays.
    """
    start = time.perf_counter()
    parts = build_parts(config, len(source), device)
    apply_efficiency(parts.state.student_teacher, config.efficiency)
    first = parts.num_steps // 2  # where the backbone no longer rests
    task, batches = task_and_batches(
        config,
        source,
        parts.state,
        parts.schedules,
        parts.sampler,
        OneProcess(parts.state.student_teacher),
        device,
        steps=range(first, first + 1 + NUM_TIMED),
        record_bad_images=len,
    )
    task.train_mode()
    ends = []
    for step, batch in enumerate(prefetch_to_device(batches, device), start=first):
        task.step(batch, step)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        ends.append(time.perf_counter())
    return statistics.median(b - a for a, b in itertools.pairwise(ends)), ends[0] - start


def num_seeds_of(name: str, seeds: int) -> int:
    """Weights as they are do not depend on a seed."""
    return 1 if name == AS_IS else seeds


def choose_steps(
    timings: dict[str, Timing], *, seeds: int, hours: float, longest: int, given: int | None
) -> list[PlannedCandidate]:
    """The plan: as many steps as the hours allow, the same for all candidates, at most those of the longest recipe.

    Args:
        given: the number of steps, if it is not to be chosen.

    Raises:
        UserError: the hours are too few for MIN_STEPS; the least is given.
    """

    def plan(steps: int) -> list[PlannedCandidate]:
        return [
            PlannedCandidate(name, num_seeds_of(name, seeds), steps if trains(name) else 0, timing)
            for name, timing in timings.items()
        ]

    if given is not None:
        return plan(given)
    allowed = hours * 3600 * (1 - RESERVE)
    per_step = sum(num_seeds_of(name, seeds) * timing.step for name, timing in timings.items() if trains(name))
    fixed = total_seconds(plan(1)) - per_step
    steps = int((allowed - fixed) / per_step) if per_step else MIN_STEPS
    least_steps = min(MIN_STEPS, longest)
    if fixed + least_steps * per_step > allowed:
        least = (fixed + least_steps * per_step) / (1 - RESERVE) / 3600
        num_cells = sum(candidate.num_seeds for candidate in plan(1))
        raise UserError(
            f"hours is {hours:g}, too few for {num_cells} cells: the least is {round_up(least)}, with which each "
            f"training has {least_steps} steps ({fixed / 60:.1f} minutes go into scores and starts). Give more hours, "
            "fewer --seeds, --candidates, --label-shares or --linear-steps, or smaller crops (--set)"
        )
    return plan(min(steps, longest))


def round_up(hours: float) -> float:
    """To two digits, never below."""
    digits = 2 if hours >= 0.1 else 4
    return round(hours + 0.5 * 10**-digits, digits)


def total_seconds(plan: list[PlannedCandidate]) -> float:
    return sum(candidate.seconds for candidate in plan)


def print_plan(plan: list[PlannedCandidate], budget: dict[str, Any]) -> None:
    """A row per candidate, and what all of them have in common."""
    table = TextTable(
        "candidate", "seeds", "steps", "minutes to train", "minutes to score", title="plan", title_justify="left"
    )
    for candidate in plan:
        training = candidate.cell_seconds - candidate.timing.scores
        minutes = [f"{candidate.num_seeds * seconds / 60:.1f}" for seconds in (training, candidate.timing.scores)]
        steps = str(candidate.steps) if candidate.steps else "none"
        table.add_row(candidate.name, str(candidate.num_seeds), steps, *minutes)
    table.add_section()
    table.add_row("all", "", "", f"{total_seconds(plan) / 60:.1f} in all", "")
    show_table(table)
    if budget:
        say(budget_sentence(budget))


def budget_sentence(budget: dict[str, Any]) -> str:
    """What is equal for all candidates that train."""
    (num_global, rows, columns), (num_local, *local) = budget["global_crops"], budget["local_crops"]
    crops = f"{num_global} crops of {rows} x {columns}" + (
        f" and {num_local} of {local[0]} x {local[1]}" if num_local else ""
    )
    return (
        f"equal for all that train: {budget['num_images']:,} images, {budget['steps']:,} steps of "
        f"{budget['images_per_step']} images, {crops} px; augmentation and learning rate are the recipe's"
    )
