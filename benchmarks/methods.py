"""What each objective costs beside DINO alone: time and memory of a step by method, in paired runs.

    python -m benchmarks.methods --batch-sizes 2 4 --rounds 3

ViT-S/16, 2 x 224 + 8 x 96 crops, a head of 8,192 prototypes for images, float32, forward and backward, same crops.
Methods take turns in every round, with the first batch size; the median of a method's time over DINO's in the same
round is shown with its spread, by the clock and by the time that all cores spent, which other work on the machine
disturbs less. Memory is the growth of a process's peak from one batch size to the other, a process of its own each.
"""

import argparse
import multiprocessing
import os
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does, before torch is imported

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.peak_memory import peak_mb
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
    SelfDistillationConfig,
    SelfPatchConfig,
)
from selfpatch.config.objectives.gram import GramConfig
from selfpatch.config.objectives.ibot import IBOTConfig
from selfpatch.config.objectives.koleo import KoLeoConfig
from selfpatch.config.objectives.moby import MoBYConfig
from selfpatch.config.objectives.moco_v3 import MoCoV3Config
from selfpatch.config.objectives.neco import NeCoConfig
from selfpatch.pretraining.masks import draw_masks
from selfpatch.pretraining.student_teacher import StudentTeacher, apply_efficiency, build_student_teacher
from selfpatch.pretraining.views import Views
from selfpatch.recipes import find_recipe

HEAD = HeadConfig(num_prototypes=8192)
SINKHORN = SelfDistillationConfig(centering="sinkhorn")
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
    "DINO + SelfPatch, global crops, recolored": ObjectivesConfig(
        dino=DINO, selfpatch=SelfPatchConfig(crops="global", view="recolored")
    ),
    "DINO + iBOT, recolored crop": ObjectivesConfig(dino=DINO, ibot=IBOTConfig(view="recolored")),
    "DINO + iBOT, other crop": ObjectivesConfig(dino=DINO, ibot=IBOTConfig(view="other")),
    "DINO + NeCo": ObjectivesConfig(dino=DINO, neco=NeCoConfig()),
    "DINO + NeCo, overlaps of 4 x 4": ObjectivesConfig(dino=DINO, neco=NeCoConfig(overlap_size=4)),
    "DINOv2: DINO + iBOT, two heads, + KoLeo, Sinkhorn": ObjectivesConfig(
        dino=DINOConfig(head=HEAD, distillation=SINKHORN),
        ibot=IBOTConfig(head=HEAD, distillation=SINKHORN),
        koleo=KoLeoConfig(),
    ),
    "MoCo v3, two crops": ObjectivesConfig(dino=None, moco_v3=MoCoV3Config()),
    "MoBY, two crops": ObjectivesConfig(dino=None, moby=MoBYConfig()),
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


def made_up_views(num_images: int) -> Views:
    """Global crops that share four ninths of themselves, local ones inside of both."""
    torch.manual_seed(0)
    views = Views(*(torch.randn(n, num_images, 3, side, side) for n, side in ((2, 224), (8, 96))))
    return views._replace(
        recolored_crops=torch.randn_like(views.global_crops),
        global_boxes=torch.tensor([[[0.0, 0, 9, 9]], [[3, 3, 12, 12]]]).expand(-1, num_images, -1),
        local_boxes=torch.tensor([4.0, 4, 8, 8]).expand(8, num_images, -1),
    )


def peak_of(method: str, size: str, batch_size: int) -> float:
    """Peak memory of a process that does nothing but two steps."""
    student_teacher = build(METHODS[method], size)
    for step in range(2):
        seconds_of(student_teacher, made_up_views(batch_size), step)
    return peak_mb()


def mb_per_image(method: str, size: str, batch_sizes: tuple[int, int]) -> float:
    peaks = []
    for batch_size in batch_sizes:
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
            peaks.append(process.submit(peak_of, method, size, batch_size).result())
    return (peaks[1] - peaks[0]) / (batch_sizes[1] - batch_sizes[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=("tiny", "small", "base"), default="small")
    parser.add_argument("--batch-sizes", type=int, nargs=2, default=(2, 4))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), metavar="METHOD")
    arguments = parser.parse_args()
    methods = ["DINO", *(name for name in arguments.methods if name != "DINO")]

    views = made_up_views(arguments.batch_sizes[0])
    networks = {name: build(METHODS[name], arguments.size) for name in methods}
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in methods}
    for step in range(arguments.rounds + 1):
        for name, student_teacher in networks.items():
            seconds[name].append(seconds_of(student_teacher, views, step))

    table = Table("method", "seconds", "time against DINO", "by CPU time", "MB per extra image")
    for name, values in seconds.items():
        timed = list(zip(values, seconds["DINO"], strict=True))[1:]  # the first round warms up
        row = [name, f"{statistics.median(own[0] for own, _ in timed):.2f}"]
        for i in range(2):  # clock, CPU
            ratios = [own[i] / dino[i] for own, dino in timed]
            row.append(f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
        table.add_row(*row, f"{mb_per_image(name, arguments.size, arguments.batch_sizes):.0f}")
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
