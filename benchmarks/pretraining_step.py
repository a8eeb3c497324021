"""The training step against its plain form: images/s and memory, in paired runs.

    python -m benchmarks.pretraining_step --batch-sizes 4 8 --rounds 3

ViT-S/16, 2 x 224 + 8 x 96 crops, heads of 65,536 and 4,096 prototypes, float32, forward and backward, same weights and
crops. The plain form (tests/reference/plain_step.py) is what the original program computes. Runs alternate A B A B; the
median is shown with its spread, by the clock and by the time that all cores spent, which other work on the machine
disturbs less. Memory is measured in processes of their own: the growth of the peak from the smaller
to the larger batch, by image, so that weights and optimizer state do not count.
"""

import argparse
import multiprocessing
import os
import statistics
import time
from dataclasses import replace

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does, before torch is imported

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.peak_memory import peak_mb
from selfpatch.backbones.build import build_backbone
from selfpatch.config import IMAGENET_MEAN, IMAGENET_STD, EfficiencyConfig
from selfpatch.pretraining.student_teacher import StudentTeacher, apply_efficiency, build_student_teacher
from selfpatch.pretraining.views import Views
from selfpatch.recipes import find_recipe
from tests.reference.plain_step import plain_loss


def build(size: str) -> StudentTeacher:
    config = find_recipe("dino-selfpatch")
    name = {"tiny": "vit_tiny_patch16_224", "small": "vit_small_patch16_224", "base": "vit_base_patch16_224"}[size]
    backbone = replace(config.backbone, name=name, drop_path=0.0)
    torch.manual_seed(0)
    vit = build_backbone(backbone, (224, 224), mean=IMAGENET_MEAN, std=IMAGENET_STD)
    return build_student_teacher(vit, replace(config, backbone=backbone), steps_per_epoch=100).train()


def crops(batch_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(2, batch_size, 3, 224, 224), torch.randn(8, batch_size, 3, 96, 96)


def ours(student_teacher: StudentTeacher, global_crops: torch.Tensor, local_crops: torch.Tensor) -> None:
    loss, _ = student_teacher(Views(global_crops, local_crops), 0)
    loss.backward()
    student_teacher.discard()


def plain(student_teacher: StudentTeacher, global_crops: torch.Tensor, local_crops: torch.Tensor) -> None:
    loss, *_ = plain_loss(student_teacher, global_crops, local_crops, 0)
    loss.backward()


# With what the backward pass computes again (efficiency.activation-checkpointing).
STEPS = {"plain": plain, "ours": ours, "checkpointing none": ours, "checkpointing full": ours}


def explicit_attention(student_teacher: StudentTeacher, explicit: bool) -> None:
    for network in (student_teacher.student, student_teacher.teacher):
        for block in network.backbone.model.blocks:
            block.attn.fused_attn = not explicit


def run(name: str, student_teacher: StudentTeacher, batch: tuple[torch.Tensor, torch.Tensor]) -> tuple[float, float]:
    """Seconds of one forward and backward pass, by the clock and of all cores."""
    explicit_attention(student_teacher, name == "plain")
    checkpointing = {"ours": "selective", "checkpointing full": "full"}.get(name, "none")
    apply_efficiency(student_teacher, EfficiencyConfig(activation_checkpointing=checkpointing))
    start, cpu_start = time.perf_counter(), time.process_time()
    STEPS[name](student_teacher, *batch)
    seconds = time.perf_counter() - start, time.process_time() - cpu_start
    student_teacher.zero_grad(set_to_none=True)
    return seconds


def peak_of(name: str, size: str, batch_size: int) -> float:
    """Peak memory of a process that does nothing but two steps."""
    student_teacher = build(size)
    for _ in range(2):
        run(name, student_teacher, crops(batch_size))
    return peak_mb()


def in_a_process_of_its_own(*arguments: object) -> float:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(peak_of, arguments)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=("tiny", "small", "base"), default="small")
    parser.add_argument("--batch-sizes", type=int, nargs=2, default=(4, 8))
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()

    student_teacher = build(arguments.size)
    table = Table("batch", "form", "seconds", "images/s against plain", "by CPU time")
    for batch_size in arguments.batch_sizes:
        batch = crops(batch_size)
        seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in STEPS}
        for _ in range(arguments.rounds + 1):
            for name in STEPS:
                seconds[name].append(run(name, student_teacher, batch))
        timed = {name: values[1:] for name, values in seconds.items()}  # the first round warms up
        for name, values in timed.items():
            row = [str(batch_size), name, f"{statistics.median(clock for clock, _ in values):.2f}"]
            for i in range(2):  # clock, CPU
                ratios = [plain[i] / own[i] for plain, own in zip(timed["plain"], values, strict=True)]
                row.append(f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
            table.add_row(*row)
    Console(width=120).print(table)

    small, large = arguments.batch_sizes
    growth = {}
    for name in STEPS:
        peaks = [in_a_process_of_its_own(name, arguments.size, batch_size) for batch_size in (small, large)]
        growth[name] = (peaks[1] - peaks[0]) / (large - small)
    memory = Table("memory per extra image", "MB", "against plain")
    for name, megabytes in growth.items():
        memory.add_row(name, f"{megabytes:.0f}", f"{megabytes / growth['plain']:.2f}")
    Console(width=120).print(memory)


if __name__ == "__main__":
    main()
