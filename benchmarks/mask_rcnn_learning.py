"""Does Mask R-CNN learn? A small random transformer is trained on a few images until it finds what is on them.

    python -m benchmarks.mask_rcnn_learning DATA OUT

DATA is in COCO's layout; the first images of train2017 are both trained on and scored, so that AP tells of the
detector, its targets and its losses, and of nothing else: all must be right for box and mask AP50 to come above 0.8.
"""

import argparse
import json
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from selfpatch.backbones.build import build_backbone
from selfpatch.backbones.vit import ViT
from selfpatch.config import IMAGENET_MEAN, IMAGENET_STD, BackboneConfig
from selfpatch.evaluation.protocols.mask_rcnn import MaskRCNN
from selfpatch.evaluation.task import EvalContext
from selfpatch.evaluation.tasks import run_task

WANTED = 0.8  # of box and mask AP50


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="a folder in COCO's layout, images of about 160 px")
    parser.add_argument("out", type=Path, help="a new folder")
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--neck", choices=("xcit", "simple"), default="xcit")
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    data = same_images_twice(arguments.data, arguments.out / "data", arguments.images)
    protocol = overfitting(arguments)
    start = time.monotonic()
    context = EvalContext(arguments.out / "result", model="random ViT, 192 wide, 4 blocks, patch 8")
    result = run_task("mask-rcnn", small_vit(arguments.seed), data, protocol, context)
    seconds = time.monotonic() - start

    title = f"{arguments.images} images, {protocol.neck} neck, {result.details['steps']} steps, {seconds:.0f} s"
    table = Table("", "AP", "AP50", "AP75", title=title, title_justify="left")
    for kind in ("box", "mask"):
        table.add_row(kind, *(f"{100 * result.metrics[f'{kind}/{name}']:.1f}" for name in ("AP", "AP50", "AP75")))
    Console().print(table)
    learned = all(result.metrics[f"{kind}/AP50"] > WANTED for kind in ("box", "mask"))
    print(f"box and mask AP50 above {WANTED:.0%}: {'yes' if learned else 'NO'}; pictures: {context.pictures}")


def same_images_twice(root: Path, out: Path, count: int) -> Path:
    """A folder in COCO's layout whose training and validation images are the first ones of `root`'s training images."""
    content = json.loads((root / "annotations" / "instances_train2017.json").read_text())
    content["images"] = sorted(content["images"], key=lambda image: image["id"])[:count]
    kept = {image["id"] for image in content["images"]}
    content["annotations"] = [entry for entry in content["annotations"] if entry["image_id"] in kept]
    (out / "annotations").mkdir(parents=True, exist_ok=True)
    for split in ("train2017", "val2017"):
        (out / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
        if not (out / split).exists():  # a run that was stopped goes on
            (out / split).symlink_to((root / "train2017").resolve())
    return out


def small_vit(seed: int) -> ViT:
    torch.manual_seed(seed)
    config = BackboneConfig(
        name="vit_tiny_patch16_224", patch_size=8, embed_dim=192, depth=4, num_heads=3, drop_path=0.0
    )
    return build_backbone(config, (160, 160), mean=IMAGENET_MEAN, std=IMAGENET_STD)


def overfitting(arguments: argparse.Namespace) -> MaskRCNN:
    """No augmentation, small heads, small anchors: the images are small, and to be learned by heart."""
    return MaskRCNN(
        neck=arguments.neck,
        fpn_channels=64,
        box_head_dim=256,
        anchor_sizes=(16, 32, 64, 128, 256),
        drop_path=0.0,
        epochs=arguments.steps * arguments.batch_size / arguments.images,
        batch_size=arguments.batch_size,
        lr=arguments.lr,
        warmup_steps=20,
        decay_epochs=(0.75 * arguments.steps * arguments.batch_size / arguments.images,),
        clip_norm=10.0,
        hflip_prob=0.0,
        augmentation="none",
        image_size=160,
        long_side=240,
        rpn_pre_nms_top_n_train=200,
        rpn_pre_nms_top_n_test=200,
        rpn_post_nms_top_n_train=100,
        rpn_post_nms_top_n_test=100,
        box_batch_size_per_image=64,
        seed=arguments.seed,
    )


if __name__ == "__main__":
    main()
