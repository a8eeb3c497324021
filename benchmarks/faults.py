"""Soak: one run through many random faults, which ends as a run to which nothing happened, or this command fails.

    python -m benchmarks.faults --faults 500

Every fault is injected into a process of its own, after a random number of steps: kills, stops, full disks, damaged
checkpoints, images that are gone. In the end weights, optimizer and every line of metrics.jsonl are compared.
"""

import argparse
import functools
import os
import random
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from selfpatch.output import checkpoint
from tests.faults.command import Command, Runs, assert_same_run, at_step, checkpoints, kill_self, no_room, write_inputs

# Longest way between two faults, in steps.
MAX_STEPS = 3


class Soak:
    """A run and what has happened to it. Each fault takes the step at which it happens, and returns an exit code."""

    def __init__(self, runs: Runs, num_steps: int, chance: random.Random):
        self._runs, self._chance = runs, chance
        self._options = ("--optim.steps", num_steps, "--run.save-every", 2)
        self.faults: dict[str, Callable[[int], int]] = {
            "killed": lambda step: self._start(at_step(step, kill_self())),
            "killed in mid-save": lambda step: self._start(functools.partial(_killed_while_writing, step)),
            "stopped": lambda step: self._start(at_step(step, kill_self(signal.SIGTERM))),
            "disk full": lambda step: self._start(at_step(step, no_room("model"))),
            "newest checkpoint damaged": self._damage,
            "image removed": self._remove_image,
        }

    def _start(self, fault: Callable[[], object] | None, *options: object) -> int:
        command = self._runs.start(*self._options, *options, fault=fault)
        code = command.wait()
        _require(command, "Traceback" not in command.printed)
        return code

    def _damage(self, step: int) -> int:
        newest = checkpoint.checkpoints_in(self._runs.out / "checkpoints")[-1:]
        for folder in newest:
            file = self._chance.choice([*folder.iterdir()])
            data = bytearray(file.read_bytes())
            data[self._chance.randrange(len(data))] ^= 1 << self._chance.randrange(8)
            file.write_bytes(data if self._chance.random() < 0.5 else data[: len(data) // 2])
        return self._start(None, "--run.stop-at-step", step)

    def _remove_image(self, step: int) -> int:
        """The run is refused, and goes on when the image is back."""
        image = self._chance.choice([*(self._runs.scenes / "images").iterdir()])
        data = image.read_bytes()
        image.unlink()
        refused = self._runs.start(*self._options)
        code = refused.wait()
        has_begun = (self._runs.out / "config.yaml").exists()
        _require(refused, not has_begun or (code == 2 and "the images are not those" in refused.printed))
        image.write_bytes(data)
        return code

    def newest(self) -> int:
        return max(checkpoints(self._runs.out), default=0)


def _killed_while_writing(step: int) -> None:
    save_file = checkpoint.save_file

    def killed(tensors: dict, path: Path) -> None:
        save_file(tensors, path)
        if int(path.parent.name.rpartition("-")[2]) >= step:
            path.write_bytes(path.read_bytes()[:100])
            os.kill(os.getpid(), signal.SIGKILL)

    checkpoint.save_file = killed  # type: ignore[assignment]


def _require(command: Command, holds: bool) -> None:
    if not holds:
        raise SystemExit(f"not as it should be:\n{command.printed}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=20, help="number of faults")
    parser.add_argument("--seed", type=int, default=0, help="of what happens when")
    given = parser.parse_args()
    chance, start = random.Random(given.seed), time.monotonic()
    num_steps = 2 * given.faults + 2
    with tempfile.TemporaryDirectory() as folder:
        runs = Runs(write_inputs(Path(folder)), Path(folder))
        soak = Soak(runs, num_steps, chance)
        names = list(soak.faults)
        happened: Counter[tuple[str, int]] = Counter()
        runs.run("--optim.steps", num_steps, "--run.save-every", 2, "--run.stop-at-step", 2)
        for number in range(given.faults):
            name = names[number % len(names)] if number < len(names) else chance.choice(names)
            # A stop at the last step is none; later faults then happen to a run that is nearly done.
            step = min(soak.newest() + chance.randint(1, MAX_STEPS), num_steps - 1)
            code = soak.faults[name](step)
            happened[name, code] += 1
        runs.run("--optim.steps", num_steps, "--run.save-every", 2)
        unbroken = Path(folder) / "unbroken"
        runs.run("--optim.steps", num_steps, "--run.save-every", 2, out=unbroken)
        assert_same_run(runs.out, unbroken, num_steps)
    print("| fault | times | exit codes |\n| --- | ---: | --- |")
    for name in names:
        codes = {code: count for (other, code), count in happened.items() if other == name}
        shown = ", ".join(f"{code} ({count})" for code, count in sorted(codes.items()))
        print(f"| {name} | {sum(codes.values())} | {shown} |")
    print(
        f"\n{given.faults} faults in a run of {num_steps} steps (seed {given.seed}), {time.monotonic() - start:.0f} s: "
        "weights, optimizer and every line of metrics.jsonl as in an unbroken run"
    )


if __name__ == "__main__":
    main()
