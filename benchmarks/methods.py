"""What each objective costs beside DINO alone: time of a step by method, in paired runs.

    python -m benchmarks.methods --batch-size 4 --rounds 3

ViT-S/16, 2 x 224 + 8 x 96 crops, a head of 8,192 prototypes for images, float32, forward and backward, same crops.
Methods take turns in every round; the median of a method's time over DINO's in the same round is shown with its spread,
by the clock and by the time that all cores spent, which other work on the machine disturbs less.
"""

import argparse
import os
import statistics
import time
from dataclasses import replace

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does, before torch is imported

import torch
from rich.console import Console
from rich.table import Table

from selfpatch.backbones.build import build_backbone
from selfpatch.config import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    AggregatorConfig,
    DINOConfig,
    EfficiencyConfig,
    HeadConfig,
    ObjectivesConfig,
    PretrainConfig,
    SelfPatchConfig,
)
from selfpatch.config.objectives.gram import GramConfig
from selfpatch.config.objectives.ibot import IBOTConfig
from selfpatch.config.objectives.koleo import KoLeoConfig
from selfpatch.config.objectives.moco_v3 import MoCoV3Config
from selfpatch.config.objectives.neco import NeCoConfig
from selfpatch.pretraining.masks import draw_masks
from selfpatch.pretraining.student_teacher import StudentTeacher, apply_efficiency, build_student_teacher
from selfpatch.pretraining.views import Views
from selfpatch.recipes import find_recipe

HEAD = HeadConfig(num_prototypes=8192)
DINO = DINOConfig(head=HEAD)
MEAN = SelfPatchConfig(aggregation="mean", crops="global")
METHODS = {
    "DINO": ObjectivesConfig(dino=DINO),
    "DINO + KoLeo": ObjectivesConfig(dino=DINO, koleo=KoLeoConfig()),
    "DINO + Gram anchoring": ObjectivesConfig(dino=DINO, gram=GramConfig()),
    "DINO + iBOT, one head": ObjectivesConfig(dino=DINO, ibot=IBOTConfig()),
    "DINO + iBOT, two heads": ObjectivesConfig(dino=DINO, ibot=IBOTConfig(head=HEAD)),
    "DINO + iBOT, all patches count": ObjectivesConfig(dino=DINO, ibot=IBOTConfig(visible_weight=1.0)),
    "DINO + SelfPatch, as the authors": ObjectivesConfig(dino=DINO, selfpatch=SelfPatchConfig()),
    "DINO + SelfPatch, global crops": ObjectivesConfig(dino=DINO, selfpatch=SelfPatchConfig(crops="global")),
    "DINO + SelfPatch, global crops, mean": ObjectivesConfig(dino=DINO, selfpatch=MEAN),
    "DINO + iBOT, recolored crop": ObjectivesConfig(dino=DINO, ibot=IBOTConfig(view="recolored")),
    "DINO + iBOT, other crop": ObjectivesConfig(dino=DINO, ibot=IBOTConfig(view="other")),
    "DINO + NeCo": ObjectivesConfig(dino=DINO, neco=NeCoConfig()),
    "DINO + NeCo, overlaps of 4 x 4": ObjectivesConfig(dino=DINO, neco=NeCoConfig(overlap_size=4)),
    "MoCo v3, two crops": ObjectivesConfig(dino=None, moco_v3=MoCoV3Config()),
}


def build(objectives: ObjectivesConfig, size: str) -> StudentTeacher:
    """The image token is the class token in all, so that they differ in their objectives alone."""
    config = find_recipe("dino")
    name = {"tiny": "vit_tiny_patch16_224", "small": "vit_small_patch16_224", "base": "vit_base_patch16_224"}[size]
    config = replace(
        config,
        backbone=replace(config.backbone, name=name, drop_path=0.0),
        aggregator=AggregatorConfig(image_token="class_token") if objectives.selfpatch else None,
        objectives=objectives,
    )
    return built(config)


def built(config: PretrainConfig) -> StudentTeacher:
    torch.manual_seed(0)
    backbone = build_backbone(config.backbone, (224, 224), mean=IMAGENET_MEAN, std=IMAGENET_STD)
    student_teacher = build_student_teacher(backbone, config, steps_per_epoch=100).train()
    apply_efficiency(student_teacher, EfficiencyConfig())
    return student_teacher


def seconds_of(student_teacher: StudentTeacher, views: Views, step: int) -> tuple[float, float]:
    """Of one forward and backward pass, by the clock and of all cores."""
    masks = None
    if student_teacher.masks:
        masks = draw_masks(
            student_teacher.masks, range(views.num_images), seed=0, step=step, num_crops=2, grid_size=(14, 14)
        )
    start, cpu_start = time.perf_counter(), time.process_time()
    loss, _ = student_teacher(views._replace(masks=masks), 0)
    loss.backward()
    seconds = time.perf_counter() - start, time.process_time() - cpu_start
    student_teacher.commit(1.0)  # from the first round on there is a Gram teacher
    student_teacher.zero_grad(set_to_none=True)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=("tiny", "small", "base"), default="small")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()

    torch.manual_seed(0)
    views = Views(*(torch.randn(n, arguments.batch_size, 3, side, side) for n, side in ((2, 224), (8, 96))))
    # Global crops that share four ninths of themselves, local ones inside of both.
    views = views._replace(
        recolored_crops=torch.randn_like(views.global_crops),
        global_boxes=torch.tensor([[[0.0, 0, 9, 9]], [[3, 3, 12, 12]]]).expand(-1, arguments.batch_size, -1),
        local_boxes=torch.tensor([4.0, 4, 8, 8]).expand(8, arguments.batch_size, -1),
    )
    networks = {name: build(objectives, arguments.size) for name, objectives in METHODS.items()}
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in METHODS}
    for step in range(arguments.rounds + 1):
        for name, student_teacher in networks.items():
            seconds[name].append(seconds_of(student_teacher, views, step))

    table = Table("method", "seconds", "time against DINO", "by CPU time")
    for name, values in seconds.items():
        timed = list(zip(values, seconds["DINO"], strict=True))[1:]  # the first round warms up
        row = [name, f"{statistics.median(own[0] for own, _ in timed):.2f}"]
        for i in range(2):  # clock, CPU
            ratios = [own[i] / dino[i] for own, dino in timed]
            row.append(f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
        table.add_row(*row)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
