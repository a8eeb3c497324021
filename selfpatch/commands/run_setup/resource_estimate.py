"""Advice on resources, before a run and while it waits: a batch that fits, memory, time, how data come faster."""

from dataclasses import replace
from datetime import timedelta

import torch

from selfpatch.backbones.build import build_backbone
from selfpatch.commands.run_setup.hardware import augment_on_device, num_cores, num_workers
from selfpatch.config import PretrainConfig, pixel_format, rows_columns
from selfpatch.config.io import override
from selfpatch.config.processes import find_place
from selfpatch.distributed import num_ranks
from selfpatch.pretraining.estimate import (
    PROBE_BATCH_SIZES,
    estimate_memory,
    largest_batch,
    time_step,
)
from selfpatch.pretraining.student_teacher import StudentTeacher, apply_efficiency, build_student_teacher
from selfpatch.recipes.derive import ResolvedSetting, RunFacts, derive
from selfpatch.training.memory import available_memory


def fit_batch_size(
    config: PretrainConfig, facts: RunFacts, begun: PretrainConfig | None, device: torch.device
) -> tuple[PretrainConfig, list[ResolvedSetting]]:
    """With optim.batch-size "auto", the largest that fits; a run that goes on keeps the one it has."""
    if config.optim.batch_size != "auto":
        return config, []
    if begun is not None:
        batch_size, reason = begun.optim.batch_size, "as this run began"
    else:
        trial, _ = derive(override(config, {"optim.batch_size": None}), facts)
        trial = override(trial, {"optim.batch_size": trial.optim.batch_size or PROBE_BATCH_SIZES[0]})
        crops = trial.crops
        mean, std = crops.normalization
        backbone = build_backbone(
            trial.backbone, rows_columns(crops.global_size), mean=mean, std=std, pixels=pixel_format(trial)
        )
        student_teacher = build_student_teacher(backbone, trial, steps_per_epoch=1).to(device)
        apply_efficiency(student_teacher, replace(trial.efficiency, compile=False))
        need, available = estimate_memory(student_teacher, trial, device), memory_of_a_process(device)
        num_parts = config.optim.accumulate * num_ranks()
        batch_size = largest_batch(need, available, num_images=facts.num_images, accumulate=num_parts)
        part = batch_size // num_parts
        reason = f"{need.bytes(part) / 2**30:.1f} of {available / 2**30:.1f} GB; the learning rate follows it"
    return override(config, {"optim.batch_size": batch_size}), [ResolvedSetting("optim.batch-size", batch_size, reason)]


def estimate(student_teacher: StudentTeacher, config: PretrainConfig, num_steps: int, device: torch.device) -> str:
    """Memory and time of a run, and what to do if the first is not there."""
    assert isinstance(config.optim.batch_size, int)
    need, available = estimate_memory(student_teacher, config, device), memory_of_a_process(device)
    part = config.optim.batch_size / num_ranks() / config.optim.accumulate  # images on the device at once
    needed = need.bytes(part)
    seconds = time_step(student_teacher, config, device, num_images=max(round(part), 1)).seconds(part)
    duration = timedelta(seconds=round(seconds * config.optim.accumulate * num_steps))
    text = (
        f"estimate: {needed / 2**30:.1f} GB of memory (counted: {need.fixed_bytes / 2**30:.1f} GB and "
        f"{need.bytes_per_image / 2**20:.0f} MB per image), {duration} for {num_steps} steps (from steps "
        "of few images, nothing compiled, if data keep up)"
    )
    if needed > available:
        text += (
            f"\nwarning: {available / 2**30:.1f} GB are available; take the largest batch that fits "
            "(--optim.batch-size auto), cut it into parts (--optim.accumulate 2) or compute again what is not kept "
            "(--efficiency.activation-checkpointing full)"
        )
    return text


def memory_of_a_process(device: torch.device) -> int:
    """Of a GPU; the processes of one machine share its memory."""
    place = find_place() if device.type == "cpu" else None
    return available_memory(device) // (place.local_world_size if place else 1)


def data_wait_hint(config: PretrainConfig, device: torch.device) -> str:
    """List the ways to faster data that have not been taken yet."""
    workers, cores = num_workers(config.efficiency.num_workers), num_cores()
    on_device = augment_on_device(config.efficiency.color_augmentation, device)
    advice = [
        workers < cores and f"more processes that read (--efficiency.num-workers {cores}: there are {cores} cores)",
        not on_device
        and device.type != "cpu"
        and "color augmentation on the device (--efficiency.color-augmentation device)",
        f"smaller images on disk: JPEGs whose short side is about {2 * min(rows_columns(config.crops.global_size))} px "
        "decode fastest and lose nothing that crops would show",
        "a disk that is nearer",
    ]
    return f"What helps: {'; '.join(text for text in advice if text)}"
