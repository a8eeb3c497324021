"""What surrounds the steps of a run: time to the first step, pictures and checkpoints, and the end.

    python -m benchmarks.startup            (from the root of the repository)

`selfpatch pretrain IMAGES OUT --recipe dino-selfpatch-small` with a ViT-Ti/16 on made-up photographs of 500 x 375
pixels, each run a process of its own, as a user starts it; bytecode is cached by a first start that is not counted.
Times are read from the lines that it prints, as they come. The time of steps, without pictures and checkpoints between
them, is what `images_per_second` of metrics.jsonl says; what is left from the first step to the end of the process is
bookkeeping. Of repeated runs medians are shown, with the range. CPU seconds are those of all processes of a run
(Linux): on a busy machine only they can be compared.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

from benchmarks.augmentation import write_photograph
from selfpatch.output.metric_logger import read_metrics


class Run(NamedTuple):
    """Seconds of one run: wall, and of CPU."""

    to_first_step: float  # from the start of the process to the end of step 1
    cpu_to_first_step: float
    after_last_step: float  # to the end of the process
    cpu_after_last_step: float
    bookkeeping: float  # from step 1 to the end of the process, without the steps
    total: float
    cpu: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, nargs="+", default=[20, 500])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--options", nargs=argparse.REMAINDER, default=[], help="further options of pretrain, last")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        images = Path(name) / "images"
        images.mkdir()
        for i in range(arguments.images):
            write_photograph(images / f"{i}.jpg", seed=i)
        options = ["--optim.batch-size", str(arguments.batch_size), *arguments.options]
        measure(images, Path(name) / "warm-up", 1, options)
        print_table(
            {
                steps: [
                    measure(images, Path(name) / f"{steps}-{number}", steps, options)
                    for number in range(arguments.rounds)
                ]
                for steps in arguments.steps
            }
        )


def measure(images: Path, out: Path, num_steps: int, options: list[str]) -> Run:
    """Train, and read the clock at every line.

    Raises:
        RuntimeError: the run failed; with what it printed.
    """
    command = [sys.executable, "-m", "selfpatch", "pretrain", images, out, "--recipe", "dino-selfpatch-small"]
    command += ["--backbone.name", "vit_tiny_patch16_224", "--optim.steps", num_steps, *options]
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environ |= {"PYTHONPYCACHEPREFIX": str(out.parent / "bytecode"), "PYTHONUNBUFFERED": "1"}
    start = time.perf_counter()
    process = subprocess.Popen(
        [str(part) for part in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environ,
        start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None
    printed, at_step, cpu_at_step = [], {}, {}
    with process.stdout as lines:
        for line in lines:
            printed.append(line)
            if line.startswith("step "):
                step = int(line.split()[1].partition("/")[0])
                at_step[step], cpu_at_step[step] = time.perf_counter() - start, cpu_seconds(process.pid)
    _, status, usage = os.wait4(process.pid, 0)
    total = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError("".join(printed))
    batch_size = int(options[options.index("--optim.batch-size") + 1])
    lines = {line["step"]: line for line in read_metrics(out / "metrics.jsonl") if "images_per_second" in line}
    in_steps = sum(
        (step - before) * batch_size / lines[step]["images_per_second"] for before, step in pairwise(sorted(lines))
    )
    cpu = usage.ru_utime + usage.ru_stime
    return Run(
        to_first_step=at_step[1],
        cpu_to_first_step=cpu_at_step[1],
        after_last_step=total - at_step[num_steps],
        cpu_after_last_step=cpu - cpu_at_step[num_steps],
        bookkeeping=total - at_step[1] - in_steps,
        total=total,
        cpu=cpu,
    )


def cpu_seconds(session: int) -> float:
    """Of all processes of a session until now; not a number where the system does not tell."""
    ticks = []
    for file in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has ended
            fields = file.read_text().rpartition(")")[2].split()  # state, parent, group, session, ...
            if int(fields[3]) == session:
                ticks.append(sum(map(int, fields[11:15])))  # its own, and of children that it has waited for
    return sum(ticks) / os.sysconf("SC_CLK_TCK") if ticks else float("nan")


def print_table(runs: dict[int, list[Run]]) -> None:
    table = Table(
        "steps", "to the first step, s", "CPU", "after the last, s", "CPU", "bookkeeping, s", "of the run",
        "whole run, s", "CPU",
        title=f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, {len(next(iter(runs.values())))} rounds",
    )  # fmt: skip
    for steps, measured in runs.items():
        share = [100 * run.bookkeeping / run.total for run in measured]
        table.add_row(
            str(steps),
            shown([run.to_first_step for run in measured]),
            shown([run.cpu_to_first_step for run in measured]),
            shown([run.after_last_step for run in measured]),
            shown([run.cpu_after_last_step for run in measured]),
            shown([run.bookkeeping for run in measured]),
            shown(share, unit=" %"),
            shown([run.total for run in measured]),
            shown([run.cpu for run in measured]),
        )
    Console(width=200).print(table)


def shown(values: list[float], unit: str = "") -> str:
    """Median and range."""
    return f"{statistics.median(values):.1f}{unit} ({min(values):.1f} to {max(values):.1f})"


if __name__ == "__main__":
    main()
