"""Does a ViT-S/16 learn in minutes on one GPU, and does the patch term help? Equal budgets, scored alike.

    python -m benchmarks.evidence OUT --cutouts make_cutouts.py --minutes 5 --limit-minutes 9.5

Again and again, until it says that all is done (exit code 0; 3: the time is up): what is there is not done anew, and a
training goes on where it was, so ten minutes at a time are enough. Its steps:

1. images: 20,000 made by `make_cutouts.py pretrain`, labelled ones by its `ade20k`; or --images and --labeled;
2. a budget, the same for every method: as many steps as DINO + SelfPatch does in --minutes, from a short trial, or
   --steps;
3. every method of METHODS that was asked for, one after another, through `pretrain` with equal seed, batch, crops and
   steps, scored by in-context segmentation ten times; its backbone in half precision at the start, in the middle and at
   the end; of each of the three the pictures, and a linear layer trained on its frozen patches;
4. the shortcut's figures (benchmarks/shortcut.py) of every method at its end;
5. RESULTS/NAME.json with everything, NAME.md with the table, NAME-curves.png, NAME-pca.png, NAME-positives.png.

What they leave: OUT/data, OUT/budget.json, OUT/METHOD/run, OUT/METHOD/{start,middle,end}.safetensors (43 MB each for a
ViT-S) and pictures and scores in folders of these names.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from safetensors.torch import load_file, save_file

from benchmarks import shortcut
from benchmarks.evidence_table import STAGES, draw_curves, draw_together, markdown
from benchmarks.time_limit import OutOfTimeError, time_limit
from selfpatch.backbones.checkpoints.weights_io import read_metadata
from selfpatch.commands.evaluate import evaluate
from selfpatch.commands.pretrain import pretrain
from selfpatch.commands.run_setup.hardware import find_device
from selfpatch.commands.visualize import visualize
from selfpatch.config.io import read_yaml, to_dict
from selfpatch.evaluation.datasets.segmentation import read_segmentation
from selfpatch.evaluation.protocols.linear_segmentation import LinearSegmentation
from selfpatch.output.atomic_files import atomic_write
from selfpatch.output.metric_logger import read_metrics
from selfpatch.output.terminal import say
from selfpatch.output.versions import versions


class Method(NamedTuple):
    recipe: str
    settings: dict[str, Any]
    says: str


TERM = "objectives.selfpatch"
AUTHORS_TERM = {
    f"{TERM}.padding_mode": "circular", f"{TERM}.crops": "all", f"{TERM}.num_positives": 4, f"{TERM}.view": "same",
    f"{TERM}.start_epoch": 0.0, f"{TERM}.ramp_epochs": 0.0,
}  # fmt: skip
# As the authors' code has them, but for the length: batch, warm-up and sizes follow from images and hardware.
SHORT = {"optim.batch_size": None, "optim.warmup_epochs": None}
METHODS = {
    "dino": Method("dino-small", {}, "DINO as dino-small trains it"),
    "dino-selfpatch": Method("dino-selfpatch-small", AUTHORS_TERM, "+ the patch term as the authors' code has it"),
    "borders-clip": Method(
        "dino-selfpatch-small",
        AUTHORS_TERM | {f"{TERM}.padding_mode": "none", f"{TERM}.num_positives": 3},  # a corner has three neighbours
        "+ the patch term, no neighbours beyond the border, 3 positives",
    ),
    "crops-global": Method(
        "dino-selfpatch-small", AUTHORS_TERM | {f"{TERM}.crops": "global"}, "+ the patch term on global crops only"
    ),
    "dino-selfpatch-small": Method("dino-selfpatch-small", {}, "+ both changes: the recipe as it is shipped"),
    "authors-dino": Method("dino", SHORT, "DINO with the authors' settings"),
    "authors-dino-selfpatch": Method("dino-selfpatch", SHORT, "DINO + SelfPatch with the authors' settings"),
}
TRIED = "dino-selfpatch"  # tells how many steps fit: the most expensive of the first two
NUM_SCORES = 10
TRIAL_STEPS = 60
NUM_SHORTCUT_IMAGES = 2000


def make_images(data: Path, cutouts: Path, *, num_images: int, num_train: int, num_val: int, side: int) -> None:
    """OUT/data/images and OUT/data/labeled, each whole or not there."""
    for name, kind, counts in (
        ("images", "pretrain", ["--images", num_images]),
        ("labeled", "ade20k", ["--train", num_train, "--val", num_val]),
    ):
        if (data / name).exists():
            continue
        unfinished = data / f"unfinished-{name}"
        shutil.rmtree(unfinished, ignore_errors=True)
        data.mkdir(parents=True, exist_ok=True)
        subprocess.run(
            [sys.executable, str(cutouts), kind, str(unfinished), *map(str, counts), "--side", str(side)], check=True
        )
        unfinished.rename(data / name)


def settings_of(method: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """All that a run's recipe does not say."""
    return {
        "backbone.name": "vit_small_patch16_224",
        "crops.global_size": arguments.crop_size,
        "crops.local_size": None,  # derived
        "seed": arguments.seed,
        "run.device": arguments.device,
        "run.max_to_keep": 1,
        **METHODS[method].settings,
        **arguments.set,
    }


def find_budget(out: Path, images: Path, arguments: argparse.Namespace) -> int:
    """Steps of every run, a multiple of NUM_SCORES; kept in OUT/budget.json, so that all calls have the same."""
    file = out / "budget.json"
    if file.exists():
        return json.loads(file.read_text())["steps"]
    budget: dict[str, Any] = {"minutes": arguments.minutes}
    steps = arguments.steps
    if steps is None:
        settings = settings_of(TRIED, arguments) | {"optim.steps": 10_000, "run.stop_at_step": TRIAL_STEPS}
        result = pretrain(images, out / "trial", recipe=METHODS[TRIED].recipe, settings=settings)
        if result.stopped_by:
            raise OutOfTimeError
        # The first lines have the loader's start and whatever is compiled.
        rate = read_metrics(out / "trial" / "metrics.jsonl")[-1]["images_per_second"]
        batch_size = read_yaml(out / "trial" / "config.yaml").optim.batch_size
        assert batch_size is not None  # derived
        steps = round(60 * arguments.minutes * rate / batch_size)
        budget |= {"trial_images_per_second": rate, "batch_size": batch_size}
        shutil.rmtree(out / "trial")
    budget["steps"] = max(steps // NUM_SCORES, 1) * NUM_SCORES
    with atomic_write(file) as temporary:
        temporary.write_text(json.dumps(budget) + "\n")
    return budget["steps"]


def train_method(
    method: str, folder: Path, images: Path, labeled: Path, num_steps: int, arguments: argparse.Namespace
) -> None:
    """The run, in three parts, with its backbone kept after each."""
    settings = settings_of(method, arguments) | {
        "optim.steps": num_steps,
        "run.save_every": num_steps // 2,
        "evaluate.data": labeled,
        "evaluate.every_steps": num_steps // NUM_SCORES,
    }
    # The warm-up's first step has a learning rate of 0: after it the weights are still those of the start.
    for stage, stop in zip(STAGES, (1, num_steps // 2, num_steps), strict=True):
        kept = folder / f"{stage}.safetensors"
        if kept.exists():
            continue
        if steps_done(folder / "run") < stop:
            if torch.cuda.is_available():
                torch.cuda.reset_peak_memory_stats()
            stopping = settings | {"run.stop_at_step": stop}
            result = pretrain(images, folder / "run", recipe=METHODS[method].recipe, settings=stopping)
            if result.stopped_by:
                raise OutOfTimeError
        keep_half(folder / "run" / "backbone.safetensors", kept)


def steps_done(run: Path) -> int:
    return max((int(path.name.removeprefix("step-")) for path in (run / "checkpoints").glob("step-*")), default=0)


def keep_half(source: Path, target: Path) -> None:
    """An exported backbone in half precision: what is scored is what can be brought home."""
    tensors = {name: value.half() for name, value in load_file(source).items()}
    with atomic_write(target) as temporary:
        save_file(tensors, temporary, metadata=read_metadata(source))


def score_method(folder: Path, labeled: Path, protocol: LinearSegmentation, device: str) -> None:
    """Pictures of validation images, and the linear layer, for each stage; positives are sought alike for all."""
    val = read_segmentation(labeled).val
    for stage in STAGES:
        model, out = folder / f"{stage}.safetensors", folder / stage
        if not (out / "positives.png").exists():
            visualize(model, val[0].image.parent, out, count=4, num_positives=3, padding_mode="none", device=device)
        if not (out / "linear" / "result.json").exists():
            evaluate(
                model, task="linear-segmentation", data=labeled, out=out / "linear", protocol=protocol, device=device
            )
            shutil.rmtree(out / "linear" / "checkpoints")


def find_shortcut(folder: Path, images: Path, device: torch.device) -> None:
    file = folder / "shortcut.json"
    if file.exists():
        return
    model = shortcut.load_model(folder / "run", device)
    pixels = shortcut.center_crops(images, model.backbone.model.patch_embed.img_size[0], NUM_SHORTCUT_IMAGES)
    figures = shortcut.measure(model, pixels, batch_size=128, num_clusters=64)
    with atomic_write(file) as temporary:
        temporary.write_text(json.dumps(figures | {"model": folder.name}) + "\n")


def figures_of(method: str, folder: Path) -> dict[str, Any]:
    """Scores and costs of one method, as far as it has come."""
    config = read_yaml(folder / "run" / "config.yaml")
    lines = read_metrics(folder / "run" / "metrics.jsonl")
    timed = [line for line in lines if "images_per_second" in line]
    batch_size = config.optim.batch_size
    assert batch_size is not None  # derived
    before = [0] + [line["step"] for line in timed[:-1]]
    linear = {
        stage: json.loads(file.read_text())["metrics"]
        for stage in STAGES
        if (file := folder / stage / "linear" / "result.json").exists()
    }
    shares = folder / "shortcut.json"
    return {
        "says": METHODS[method].says,
        "recipe": config.recipe,
        "steps": timed[-1]["step"],
        "num_steps": config.optim.steps,
        "images_seen": timed[-1]["step"] * batch_size,
        "images_per_second": statistics.median(line["images_per_second"] for line in timed),
        "training_seconds": sum(
            (line["step"] - step) * batch_size / line["images_per_second"]
            for line, step in zip(timed, before, strict=True)
        ),
        "data_wait": statistics.median(line["data_wait"] for line in timed),
        "memory_mb": max(line["memory_mb"] for line in timed),
        "skipped_steps": timed[-1]["skipped_steps"],
        "in_context": {str(line["step"]): line["in_context/mIoU"] for line in lines if "in_context/mIoU" in line},
        "linear": {stage: metrics["mIoU"] for stage, metrics in linear.items()},
        "last": {name: value for name, value in timed[-1].items() if "/" in name},
        "shortcut": json.loads(shares.read_text()) if shares.exists() else None,
        "config": to_dict(config),
    }


def summarize(out: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Everything that is there by now, to NAME.json, NAME.md and the pictures; tells the table."""
    methods = {
        method: figures_of(method, out / method)
        for method in METHODS
        if any("images_per_second" in line for line in read_metrics(out / method / "run" / "metrics.jsonl"))
    }
    results, name = arguments.results, arguments.name
    results.mkdir(parents=True, exist_ok=True)
    device = find_device(arguments.device)
    summary = {
        "command": " ".join(["python -m benchmarks.evidence", *sys.argv[1:]]),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "versions": versions(),
        "seed": arguments.seed,
        "linear_protocol": to_dict(linear_protocol(arguments)),
        "methods": methods,
    }
    (results / f"{name}.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    text = markdown(summary)
    (results / f"{name}.md").write_text(text, encoding="utf-8")
    if methods:
        draw_curves(methods, results / f"{name}-curves.png")
    for picture, title in (("pca", "Patch tokens as colours"), ("positives", "Positives")):
        rows = {method: [out / method / stage / f"{picture}.png" for stage in STAGES] for method in methods}
        if rows := {method: row for method, row in rows.items() if all(path.exists() for path in row)}:
            draw_together(rows, title, results / f"{name}-{picture}.png")
    say(text)
    return summary


def linear_protocol(arguments: argparse.Namespace) -> LinearSegmentation:
    """DINOv3's but for sizes, length, colors and the choice of a step: the scenes are small, differ by color, and
    the layer is trained for half a minute."""
    size = arguments.linear_size
    steps = arguments.linear_steps
    return LinearSegmentation(
        image_size=size,
        stride=2 * size // 3,
        steps=steps,
        warmup_steps=steps // 20,
        photometric_style="mmseg",
        eval_interval=None,
    )


def setting(text: str) -> tuple[str, Any]:
    name, _, value = text.partition("=")
    return name, yaml.safe_load(value)


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--cutouts", type=Path, help="make_cutouts.py, to make the images with")
    parser.add_argument("--images", type=Path, help="instead: a folder of images")
    parser.add_argument("--labeled", type=Path, help="and labelled ones, in any layout that evaluate reads")
    parser.add_argument("--num-images", type=int, default=20_000)
    parser.add_argument("--num-train", type=int, default=800)
    parser.add_argument("--num-val", type=int, default=200)
    parser.add_argument("--side", type=int, default=256, help="short side of the images that are made")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS)[:4])
    parser.add_argument("--minutes", type=float, default=5, help="of training, for each method")
    parser.add_argument("--steps", type=int, help="instead of --minutes")
    parser.add_argument("--limit-minutes", type=float, default=9.5, help="of this call; the next one goes on")
    parser.add_argument("--crop-size", type=int, default=160, help="side of the global crops")
    parser.add_argument("--linear-size", type=int, default=256)
    parser.add_argument("--linear-steps", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--set", type=setting, nargs="*", default=[], metavar="NAME=VALUE", help="for every run")
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--name", default="evidence")
    parsed = parser.parse_args(arguments)
    parsed.set = dict(parsed.set)
    if parsed.cutouts is None and (parsed.images is None or parsed.labeled is None):
        parser.error("give --cutouts, or --images and --labeled")
    return parsed


def main(given: list[str] | None = None) -> int:
    """0: all is done; 3: the time is up, the same command goes on."""
    arguments = parse(sys.argv[1:] if given is None else given)
    out, device = arguments.out, find_device(arguments.device)
    images, labeled = arguments.images or out / "data" / "images", arguments.labeled or out / "data" / "labeled"
    done = False
    try:
        with time_limit(arguments.limit_minutes):
            # 1. Images.
            if arguments.cutouts is not None:
                make_images(
                    out / "data", arguments.cutouts, num_images=arguments.num_images, num_train=arguments.num_train,
                    num_val=arguments.num_val, side=arguments.side,
                )  # fmt: skip
            # 2. Budget.
            num_steps = find_budget(out, images, arguments)
            # 3. and 4. Method by method, so that what was asked for first is whole first.
            for method in arguments.methods:
                train_method(method, out / method, images, labeled, num_steps, arguments)
                score_method(out / method, labeled, linear_protocol(arguments), arguments.device)
                find_shortcut(out / method, images, device)
            done = True
    except OutOfTimeError:
        pass
    # 5. What there is so far.
    summarize(out, arguments)
    say("all is done" if done else "the time is up: the same command goes on")
    return 0 if done else 3


if __name__ == "__main__":
    sys.exit(main())
