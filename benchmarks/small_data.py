"""Does the small-data recipe learn, and does SelfPatch help? The demo's run for several seeds, with and without it.

    python -m benchmarks.small_data OUT --seeds 0 1 2

Prints in-context mIoU of random weights, DINO and DINO + SelfPatch, and what a run took. About five minutes a run on
two CPU cores.
"""

import argparse
import statistics
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from selfpatch.commands.pretrain import pretrain
from selfpatch.demo.scenes import write_scenes

METHODS = {"DINO + SelfPatch": {}, "DINO": {"objectives.selfpatch": None}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="a folder for scenes and runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    arguments = parser.parse_args()

    rows = []
    for seed in arguments.seeds:
        scenes = arguments.out / f"scenes-{seed}"
        write_scenes(scenes, num_unlabeled=1000, num_train=150, num_val=50, size=128, seed=seed)
        for method in arguments.methods:
            settings = {"seed": seed, "optim.steps": arguments.steps, "evaluate.data": scenes / "ade20k"}
            out = arguments.out / f"{method.replace(' ', '')}-{seed}"
            start = time.monotonic()
            result = pretrain(scenes / "images", out, recipe="demo", settings=settings | METHODS[method])
            scores = [100 * score for _, score in sorted(result.scores.items())]
            rows.append((method, seed, scores[0], scores[-1], time.monotonic() - start))

    table = Table("method", "seed", "random", "trained", "gain", "seconds", title=f"mIoU %, {arguments.steps} steps")
    for method, seed, first, last, seconds in rows:
        table.add_row(method, str(seed), f"{first:.1f}", f"{last:.1f}", f"{last - first:+.1f}", f"{seconds:.0f}")
    for method in arguments.methods:
        gains = [last - first for name, _, first, last, _ in rows if name == method]
        table.add_row(method, "mean", "", "", f"{statistics.mean(gains):+.1f}", "", style="bold")
    Console().print(table)


if __name__ == "__main__":
    main()
