"""The training step on a GPU: images/s, share of the peak rate, memory, against the plain form; then fed by JPEGs.

    python -m benchmarks.gpu                     (from the root of the repository; minutes on one GPU, no network)
    python -m benchmarks.gpu --miniature         (seconds on a CPU: that everything runs)

2 x 224 + 8 x 96 crops, heads of 65,536 and 4,096 prototypes, whole steps with optimizer and teacher. Ours: bf16,
compiled blocks, fused attention, colors augmented on the device. Plain: tests/reference/plain_step.py under fp16
autocast with a gradient scaler, explicit attention, one softmax per crop, tensors clipped and averaged one by one.
Both run by turns, and medians of the rounds are shown with their spread; peaks of memory are of each form alone.

The share of the peak counts the products of our step (torch's counter, without recomputation) against the rate that
this machine reaches with one large bf16 matrix product. All numbers go to benchmarks/results/ as JSON.
"""

import argparse
import contextlib
import gc
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.augmentation import write_photograph
from benchmarks.gpu_table import show
from benchmarks.pretraining_step import explicit_attention
from selfpatch.backbones.build import build_backbone
from selfpatch.commands.run_setup.hardware import num_cores
from selfpatch.config import IMAGENET_MEAN, IMAGENET_STD, PretrainConfig, rows_columns
from selfpatch.config.io import override
from selfpatch.data.augmentation.crops import Crops
from selfpatch.data.augmentation.multi_crop import MultiCrop
from selfpatch.data.image_folder import ImageFolder
from selfpatch.data.loading.device_prefetch import prefetch_to_device
from selfpatch.data.loading.loader import Batch, training_batches
from selfpatch.data.loading.sampler import EpochSampler
from selfpatch.optim.optimizer import parameter_groups
from selfpatch.output.versions import installed_version
from selfpatch.pretraining.student_teacher import StudentTeacher, apply_efficiency, build_student_teacher
from selfpatch.pretraining.train_state import TrainState
from selfpatch.pretraining.train_step import PretrainTask, build_optimizer, build_schedules
from selfpatch.pretraining.views import Views
from selfpatch.recipes import find_recipe
from tests.reference.plain_step import plain_loss

RESULTS = Path(__file__).parent / "results"
STEPS_PER_EPOCH = 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbones", nargs="+", default=["vit_small_patch16_224", "vit_base_patch16_224"])
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[64, 128])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=5, help="steps timed in a round")
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--activation-checkpointing", choices=("none", "selective", "full"), default="selective")
    parser.add_argument("--workers", type=int, default=num_cores())
    parser.add_argument("--miniature", action="store_true", help="a tiny model, few steps, also on a CPU")
    arguments = parser.parse_args()
    if arguments.miniature:
        arguments.backbones, arguments.batch_sizes, arguments.no_compile = ["vit_tiny_patch16_224"], [2, 4], True
        arguments.rounds, arguments.steps, arguments.workers = 2, 1, 1
    elif not torch.cuda.is_available():
        parser.error("there is no GPU; --miniature tries everything on a CPU")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.backends.cuda.matmul.allow_tf32 = True

    peak = matrix_product_rate(device)
    results: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {num_cores()} cores",
        "versions": {name: installed_version(name) for name in ("torch", "timm", "selfpatch")},
        "python": platform.python_version(),
        "settings": vars(arguments),
        "peak_tflops": peak / 1e12,
        "steps": [],
    }
    for backbone in arguments.backbones:
        for batch_size in arguments.batch_sizes:
            row = measure(backbone, batch_size, arguments, device, peak)
            results["steps"].append(row)
            print(json.dumps(row))  # a long run that ends early has said what it knows
    fastest = max((row for row in results["steps"] if "ours" in row), key=lambda row: row["ours"]["images_per_second"])
    results["fed"] = measure_fed(fastest["backbone"], fastest["batch_size"], arguments, device)

    show(results)
    RESULTS.mkdir(exist_ok=True)
    name = "gpu-miniature.json" if arguments.miniature else f"gpu-{results['device'].replace(' ', '-')}.json"
    (RESULTS / name).write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


# 1. What is measured


def measure(
    backbone: str, batch_size: int, arguments: argparse.Namespace, device: torch.device, peak: float
) -> dict[str, Any]:
    """Ours and plain, each alone for its memory and then by turns; a form that does not fit is left out."""
    config = configure(backbone, batch_size, arguments)
    batch = random_batch(config, device)
    memory = {}
    for name, make_step in FORMS.items():
        with contextlib.suppress(torch.OutOfMemoryError):
            memory[name] = peak_gib(lambda make_step=make_step: make_step(config, batch, device), device)
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
    steps = {name: FORMS[name](config, batch, device) for name in memory}
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for round_ in range(arguments.rounds + 1):
        for name, step in steps.items():
            spent = timed(step, arguments.steps, device)
            if round_:  # the first one compiles and chooses kernels
                seconds[name].append(spent)
    row: dict[str, Any] = {"backbone": backbone, "batch_size": batch_size}
    flops = flops_per_image(config, device)
    for name, own in seconds.items():
        rates = [batch_size / s for s in own]
        row[name] = {
            "images_per_second": statistics.median(rates),
            "spread": [min(rates), max(rates)],
            "memory_gib": memory[name],
            "share_of_peak": flops * statistics.median(rates) / peak,
        }
    if len(seconds) == 2:
        ratios = [p / o for o, p in zip(seconds["ours"], seconds["plain"], strict=True)]
        row["times_plain"] = {"median": statistics.median(ratios), "spread": [min(ratios), max(ratios)]}
    return row


def peak_gib(make_step: Callable[[], Callable[[], None]], device: torch.device) -> float | None:
    """Of two steps of a form that has the GPU to itself."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    step = make_step()
    step()
    step()
    return torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else None


def measure_fed(backbone: str, batch_size: int, arguments: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """The same step on random tensors and fed by the loader, by turns in one process."""
    config = configure(backbone, batch_size, arguments)
    on_random = our_step(config, random_batch(config, device), device)
    num_steps = 1 + arguments.rounds * arguments.steps
    with tempfile.TemporaryDirectory() as folder:
        for i in range(max(64, batch_size)):
            write_photograph(Path(folder) / f"{i}.jpg", seed=i)
        images = ImageFolder(Path(folder))
        batches = prefetch_to_device(
            training_batches(
                images,
                EpochSampler(len(images), batch_size, 0),
                MultiCrop(config.crops, color_in_worker=False),
                first_step=0,
                stop_step=num_steps,
                num_workers=arguments.workers,
                pin_memory=device.type == "cuda",
            ),
            device,
        )
        task = build_task(config, device)

        def fed() -> None:
            batch = next(batches)
            task.step(batch, batch.step)

        timed(on_random, 1, device)
        timed(fed, 1, device)
        rates: dict[str, list[float]] = {"random tensors": [], "JPEGs": []}
        for _ in range(arguments.rounds):
            for name, step in (("random tensors", on_random), ("JPEGs", fed)):
                rates[name].append(batch_size / timed(step, arguments.steps, device))
    shares = [a / b for a, b in zip(rates["JPEGs"], rates["random tensors"], strict=True)]
    return {
        "backbone": backbone,
        "batch_size": batch_size,
        "workers": arguments.workers,
        "images_per_second": {name: statistics.median(own) for name, own in rates.items()},
        "share": statistics.median(shares),
        "spread": [min(shares), max(shares)],
    }


def timed(step: Callable[[], None], count: int, device: torch.device) -> float:
    """Seconds a step."""
    synchronize(device)
    start = time.perf_counter()
    for _ in range(count):
        step()
    synchronize(device)
    return (time.perf_counter() - start) / count


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def matrix_product_rate(device: torch.device, tries: int = 5) -> float:
    """FLOP/s of a large square product in bf16; of float32 on a CPU, which mostly has no bf16."""
    size, dtype = (8192, torch.bfloat16) if device.type == "cuda" else (1024, torch.float32)
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    seconds = [timed(lambda: torch.mm(a, b), 10, device) for _ in range(tries + 1)][1:]
    return 2 * size**3 / min(seconds)


def flops_per_image(config: PretrainConfig, device: torch.device) -> float:
    """Of our step, its attention written out so that every product is seen."""
    student_teacher = build(replace(config, optim=replace(config.optim, batch_size=2)), device)
    explicit_attention(student_teacher, True)
    two = random_batch(config, device).crops.slice_images(0, 2).map(Tensor.float)
    with FlopCounterMode(display=False) as counter:
        loss, _ = student_teacher(Views(two.global_crops, two.local_crops), 0)
        loss.backward()
    return counter.get_total_flops() / 2


# 2. The two forms of a step


def configure(backbone: str, batch_size: int, arguments: argparse.Namespace) -> PretrainConfig:
    settings: dict[str, Any] = {
        "backbone.name": backbone,
        "backbone.drop_path": 0.0,  # equal work a step
        "optim.batch_size": batch_size,
        "efficiency.compile": not arguments.no_compile,
        "efficiency.activation_checkpointing": arguments.activation_checkpointing,
    }
    if arguments.miniature:
        settings |= {"crops.global_size": 96, "crops.local_size": 48, "crops.num_local": 2}
        settings |= {"backbone.depth": 2, "objectives.dino.head.num_prototypes": 1024}
    return override(find_recipe("dino-selfpatch"), settings)


def build(config: PretrainConfig, device: torch.device) -> StudentTeacher:
    torch.manual_seed(0)
    size = rows_columns(config.crops.global_size)
    backbone = build_backbone(config.backbone, size, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    return build_student_teacher(backbone, config, steps_per_epoch=STEPS_PER_EPOCH).to(device).train()


def build_task(config: PretrainConfig, device: torch.device) -> PretrainTask:
    student_teacher = build(config, device)
    apply_efficiency(student_teacher, config.efficiency)
    batch_size = config.optim.batch_size
    assert isinstance(batch_size, int)
    return PretrainTask(
        TrainState(student_teacher, build_optimizer(student_teacher)),
        config,
        schedules=build_schedules(config.optim, config.teacher, num_steps=10**6, steps_per_epoch=STEPS_PER_EPOCH),
        sampler=EpochSampler(STEPS_PER_EPOCH * batch_size, batch_size, seed=0),
        device=device,
        record_bad_images=len,
    )


def our_step(config: PretrainConfig, batch: Batch, device: torch.device) -> Callable[[], None]:
    task = build_task(config, device)
    return lambda: task.step(batch, batch.step) and None


def plain_step(config: PretrainConfig, batch: Batch, device: torch.device) -> Callable[[], None]:
    """What the original program does in a step, in our words: crop after crop, tensor after tensor."""
    student_teacher = build(config, device)
    explicit_attention(student_teacher, True)
    optimizer = torch.optim.AdamW(parameter_groups(student_teacher), foreach=False)
    on_gpu = device.type == "cuda"
    scaler = torch.amp.GradScaler(device.type, enabled=on_gpu)
    assert batch.crops.local_crops is not None
    crops = [(part.float() / 255 - 0.45) / 0.226 for part in (batch.crops.global_crops, batch.crops.local_crops)]

    def step() -> None:
        with torch.autocast("cuda", torch.float16) if on_gpu else contextlib.nullcontext():
            loss, image_mean, patch_mean = plain_loss(student_teacher, crops[0], crops[1], 0)
        if not torch.isfinite(loss):
            return
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        for parameter in student_teacher.parameters():
            if parameter.grad is not None:
                factor = 3.0 / (parameter.grad.norm() + 1e-6)
                if factor < 1:  # waits for the GPU, once a tensor
                    parameter.grad.mul_(factor)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        with torch.no_grad():
            for student, teacher in student_teacher.ema_pairs():
                for s, t in zip(student.parameters(), teacher.parameters(), strict=True):
                    t.mul_(0.996).add_(s, alpha=0.004)
            for name, mean in (("dino", image_mean), ("selfpatch", patch_mean)):
                center = student_teacher.objectives[name].branch.distillation.center
                center.mul_(0.9).add_(mean.float(), alpha=0.1)

    return step


FORMS = {"ours": our_step, "plain": plain_step}


def random_batch(config: PretrainConfig, device: torch.device) -> Batch:
    crops = config.crops
    shapes = [(crops.num_global, crops.global_size), (crops.num_local, crops.local_size)]
    global_crops, local_crops = (
        torch.randint(0, 256, (count, config.optim.batch_size, 3, size, size), dtype=torch.uint8, device=device)
        for count, size in shapes
    )  # fmt: skip
    return Batch(0, Crops(global_crops, local_crops), [], 0)


if __name__ == "__main__":
    main()
