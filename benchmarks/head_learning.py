"""Do heads learn? Each is trained on a few images and scored on the very same ones: it must come to know them by heart.

    python -m benchmarks.head_learning DATA --task semantic-fpn

DATA is in ADE20K's layout. The backbone is small and starts from
random weights, and what varies images in training is off. Prints a table; about ten minutes on a CPU core.
"""

import argparse
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from selfpatch.backbones.build import build_backbone
from selfpatch.backbones.vit import ViT
from selfpatch.config import IMAGENET_MEAN, IMAGENET_STD, BackboneConfig
from selfpatch.evaluation.protocols import TASKS as PROTOCOLS
from selfpatch.evaluation.result import Result
from selfpatch.evaluation.task import EvalContext
from selfpatch.evaluation.tasks import run_task

NUM_LABELED_IMAGES = 16
SIDE = 96
# Nothing varies but the place of a crop; windows have the size of the crops, so that positions are those of training.
AS_IT_IS = {
    "image_size": SIDE, "long_side": 4 * SIDE, "stride": SIDE // 2, "scale": (1.0, 1.0), "cat_max_ratio": 1.0,
    "hflip_prob": 0.0, "photometric_distortion": False, "dropout": 0.0, "batch_size": 8, "warmup_steps": 20,
}  # fmt: skip
DECODER = {
    "inference": "slide", "lr": 3e-3, "steps": 700, "clip_norm": 1.0, "drop_path": 0.0, "head_channels": 32,
}  # fmt: skip
SEGMENTATION: dict[str, dict[str, Any]] = {
    "semantic-fpn": {**DECODER, "fpn_channels": 32},
    # Patches of 4 px are as fine as a pyramid begins. It takes longer to learn classes of 0.2 % of the pixels.
    "upernet": {**DECODER, "steps": 1400, "neck_scales": (1.0, 0.5, 0.25, 0.125), "auxiliary_channels": 16},
    "linear-segmentation": {"lr": 1e-2, "steps": 200},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="the folder of a data set")
    parser.add_argument("--task", choices=LEARN, required=True)
    arguments = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        results = LEARN[arguments.task](arguments.data, Path(folder))
    metrics = [name for name in results[0].metrics if "/" not in name]
    table = Table("task", *(f"{name} %" for name in metrics), "seconds", title="trained and scored on the same images")
    for result in results:
        scores = (f"{100 * result.metrics[name]:.1f}" for name in metrics)
        table.add_row(result.task, *scores, f"{result.seconds:.0f}")
    Console().print(table)


def small_vit() -> ViT:
    config = BackboneConfig("vit_tiny_patch16_224", patch_size=4, embed_dim=64, depth=3, num_heads=4, class_token=False)
    torch.manual_seed(0)
    return build_backbone(config, (SIDE, SIDE), mean=IMAGENET_MEAN, std=IMAGENET_STD)


def learn_segmentation(task: str, data: Path, folder: Path) -> list[Result]:
    """The decoder with its backbone; and, below it, one linear layer on the backbone as it started."""
    root = same_images(data, folder / "images")
    return [segment(name, root, folder / name) for name in (task, "linear-segmentation")]


def segment(task: str, root: Path, out: Path) -> Result:
    protocol = PROTOCOLS[task].presets["quick"]
    protocol = replace(protocol, **AS_IT_IS, **SEGMENTATION[task])
    return run_task(task, small_vit(), root, protocol, EvalContext(out, model="a small random ViT"))


def same_images(data: Path, root: Path) -> Path:
    """The first training images of a data set in ADE20K's layout, as one of which both splits are these."""
    shutil.copy(data / "objectInfo150.txt", copy_to(root))
    for image in sorted((data / "images/training").iterdir())[:NUM_LABELED_IMAGES]:
        for split in ("training", "validation"):
            shutil.copy(image, copy_to(root / "images" / split))
            shutil.copy(data / "annotations/training" / f"{image.stem}.png", copy_to(root / "annotations" / split))
    return root


def copy_to(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


# task -> (data, a folder for what it writes) -> what it came to, the task itself first
LEARN: dict[str, Callable[[Path, Path], list[Result]]] = {
    "semantic-fpn": partial(learn_segmentation, "semantic-fpn"),
    "upernet": partial(learn_segmentation, "upernet"),
}

if __name__ == "__main__":
    main()
