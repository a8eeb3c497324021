"""Does a patch-level objective help? Methods x seeds at equal budget, scored alike, with intervals.

    python -m benchmarks.does_it_help --regime scenes --out OUT
    python -m benchmarks.does_it_help --regime continued --out OUT --weights MODEL --images FOLDER --labels FOLDER
    python -m benchmarks.does_it_help --regime scratch --out OUT --images FOLDER --labels FOLDER
    python -m benchmarks.does_it_help --merge OTHER.json        # cells of another machine; prints the tables anew

Every call goes on where the last one was cut (exit code 3 after --limit-minutes or a signal, 0 when all is done), does
what is missing, puts all cells into --results and prints the tables. Seeds come in the outer loop: whenever it is cut,
methods have as many seeds each, give or take one. More methods, seeds or tasks: ask for them in a later call.

Settings are chosen on `--split choose` and reported on `--split report`. Scenes of the two are made from different
seeds; of photographs the user gives labeled images of other objects and places.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import yaml

from benchmarks.does_it_help.cells import Cell, budget_of, do_cell
from benchmarks.does_it_help.documents import write_tables
from benchmarks.does_it_help.methods import METHODS, START
from benchmarks.does_it_help.regimes import REGIMES, SPLITS, make_regime
from benchmarks.does_it_help.results import RESULTS, merge, read_results, read_study, write_results
from benchmarks.does_it_help.scores import make_scorers
from benchmarks.does_it_help.tables import study_tables
from benchmarks.time_limit import OutOfTimeError, time_limit
from selfpatch.commands.run_setup.hardware import find_device
from selfpatch.errors import UserError
from selfpatch.output.atomic_files import atomic_write
from selfpatch.output.terminal import say

DEFAULT_METHODS = ("dino", "selfpatch", "ibot")


def setting(text: str) -> tuple[str, Any]:
    name, _, value = text.partition("=")
    return name, yaml.safe_load(value)


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--regime", choices=REGIMES, help="where methods are tried; none: only merge and print")
    parser.add_argument("--out", type=Path, help="a folder for data, runs and cells")
    parser.add_argument("--split", choices=SPLITS, default="report", help="choose settings here, report them there")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(DEFAULT_METHODS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--images", type=Path, help="unlabeled images, for continued and scratch")
    parser.add_argument("--labels", type=Path, help="labeled images, in any layout that evaluate reads")
    parser.add_argument("--weights", type=Path, help="the model that continued goes on from")
    parser.add_argument(
        "--num-scenes", type=int, nargs=3, default=(1000, 256, 200), metavar="N", help="unlabeled, training, validation"
    )
    parser.add_argument("--davis", type=Path, help="also score video segmentation: videos in DAVIS-2017's layout")
    parser.add_argument("--lost", type=Path, help="also score object discovery: images with boxes")
    parser.add_argument("--mask-rcnn", type=Path, help="also fine-tune Mask R-CNN, short: COCO's layout")
    parser.add_argument("--semantic-fpn", action="store_true", help="also fine-tune Semantic FPN, short, on --labels")
    parser.add_argument("--set", type=setting, nargs="*", default=[], metavar="NAME=VALUE", help="for every run")
    parser.add_argument("--name", help="of the study, if not REGIME-SPLIT: for other settings of a regime")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--limit-minutes", type=float, default=1e5, help="of this call; the next one goes on")
    parser.add_argument("--keep-runs", action="store_true", help="keep checkpoints: heads and teachers")
    parser.add_argument("--results", type=Path, default=RESULTS, help="the file of all cells")
    parser.add_argument("--merge", type=Path, nargs="*", default=[], help="files of results to take cells from")
    parser.add_argument(
        "--docs",
        type=Path,
        nargs="*",
        default=[],
        help="documents whose tables are written anew, of this repository's results",
    )
    parsed = parser.parse_args(arguments)
    parsed.set = dict(parsed.set)
    if parsed.regime and parsed.out is None:
        parser.error("--regime needs --out, a folder for data, runs and cells")
    return parsed


def run_regime(arguments: argparse.Namespace) -> bool:
    """All cells that are missing; True if none is left."""
    device = find_device(arguments.device)
    study = arguments.name or f"{arguments.regime}-{arguments.split}"
    folder = arguments.out / study
    regime = make_regime(
        arguments.regime, arguments.split, arguments.out, images=arguments.images, labels=arguments.labels,
        weights=arguments.weights, num_scenes=tuple(arguments.num_scenes), settings=arguments.set,
    )  # fmt: skip
    # 1. One budget per folder: what is there was made with it.
    budget = budget_of(regime)
    if not (folder / "budget.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_write(folder / "budget.json") as temporary:
            temporary.write_text(json.dumps(budget, indent=1) + "\n")
    merge(read_study(folder), {study: {"budget": json.loads(json.dumps(budget)), "cells": {}}})
    # 2. Cells, seed by seed.
    more = {"davis": arguments.davis, "lost": arguments.lost, "mask-rcnn": arguments.mask_rcnn}
    more["semantic-fpn"] = regime.labels if arguments.semantic_fpn else None
    slow = {name: place for name, place in more.items() if place is not None}
    scorers = make_scorers(regime.labels, folder / "regions", regime.sizes, more=slow, device=device)
    try:
        with time_limit(arguments.limit_minutes):
            for seed in arguments.seeds:
                # Given weights are the same for every seed, random ones are not.
                begins = () if regime.weights is not None and seed != arguments.seeds[0] else (START,)
                for method in (*begins, *arguments.methods):
                    do_cell(regime, Cell(method, seed), folder, scorers, device, keep_runs=arguments.keep_runs)
                    collect(arguments, folder)
    except OutOfTimeError:
        collect(arguments, folder)
        return False
    return True


def collect(arguments: argparse.Namespace, folder: Path | None = None) -> None:
    """Put what is there into the file of results."""
    results = read_results(arguments.results)
    for file in arguments.merge:
        if not file.is_file():
            raise UserError(f"there is no file {file} to merge; give the --results of another machine")
        results = merge(results, read_results(file))
    if folder is not None:
        results = merge(results, read_study(folder))
    write_results(results, arguments.results)


def main(given: list[str] | None = None) -> int:
    """0: all is done; 2: the request cannot be met; 3: the time is up, the same command goes on."""
    arguments = parse(sys.argv[1:] if given is None else given)
    try:
        done = run_regime(arguments) if arguments.regime else True
        collect(arguments)
    except UserError as error:
        say(str(error))
        return 2
    for name, study in read_results(arguments.results).items():
        say(f"{name}\n\n{study_tables(study)}")
    for document in arguments.docs:
        write_tables(document)
    say("all is done" if done else "the time is up: the same command goes on")
    return 0 if done else 3


if __name__ == "__main__":
    sys.exit(main())
