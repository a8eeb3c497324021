"""`selfpatch pretrain`: from a folder of images to a trained backbone, with scores and pictures on the way."""

from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from selfpatch.backbones.build import build_backbone
from selfpatch.backbones.pretrained import load_weights
from selfpatch.commands.hardware import augment_on_device, find_device, num_workers
from selfpatch.commands.monitor import Watch
from selfpatch.commands.resource_estimate import data_wait_hint, estimate, fit_batch_size
from selfpatch.config import PretrainConfig, rows_columns
from selfpatch.config.io import override
from selfpatch.data.augmentation.multi_crop import MultiCrop
from selfpatch.data.image_folder import ImageFolder, require_readable
from selfpatch.data.loading.device_prefetch import prefetch_to_device
from selfpatch.data.loading.loader import training_batches
from selfpatch.data.loading.sampler import Plan
from selfpatch.errors import UserError
from selfpatch.export import export_timm
from selfpatch.objectives.selfpatch import neighborhood
from selfpatch.output import checkpoint
from selfpatch.output.metric_logger import MetricLogger
from selfpatch.output.progress import TrainingProgress, say
from selfpatch.output.versions import installed_version
from selfpatch.pretraining.run_folder import RunFolder
from selfpatch.pretraining.student_teacher import StudentTeacher, apply_efficiency, build_student_teacher
from selfpatch.pretraining.train_step import PretrainTask, build_optimizer, build_schedules
from selfpatch.recipes import find_recipe
from selfpatch.recipes.derive import ResolvedSetting, RunFacts, derive
from selfpatch.training.loop import PeriodicCallback, train
from selfpatch.training.stop_signal import StopSignal

# A shorter run is over before an estimate of it helps.
ESTIMATED_STEPS = 100


@dataclass(frozen=True)
class PretrainResult:
    """What a run left behind."""

    out: Path
    steps_done: int
    num_steps: int
    scores: dict[int, float]  # step -> mIoU of in-context segmentation, if it was asked for
    backbone_file: Path
    load_line: str  # the Python that loads the backbone in plain timm
    stopped_by: int | None = None  # the number of the signal that ended it before its time


def pretrain(
    images: Path | str,
    out: Path | str,
    *,
    recipe: str = "dino-selfpatch",
    settings: dict[str, Any] | None = None,
    config: PretrainConfig | None = None,
    resume: Path | str | None = None,
    init_from: Path | str | None = None,
) -> PretrainResult:
    """Train on all images below `images`; everything goes to the folder `out`. Called again, it goes on where it was.

    Args:
        recipe: where the settings come from, e.g. "dino-selfpatch-small"; `config` gives all of them instead.
        settings: changes to them by dotted name, e.g. {"optim.lr": 1e-3, "evaluate.data": "ade20k/"}.
        resume: a checkpoint of another run with the same settings to start from, if `out` has none.
        init_from: a backbone to start from, if there is nothing to go on from: anything `load_backbone` takes.

    Raises:
        UserError: images, settings, device or `out` do not allow the run; nothing has been written then.
    """
    # 1. Settings: those given, and those that follow from images and hardware.
    config = override(config or find_recipe(recipe), settings or {})
    device = find_device(config.run.device)
    folder = ImageFolder(Path(images))
    facts = RunFacts(num_images=len(folder), on_gpu=device.type == "cuda")
    config, fitted = fit_batch_size(config, facts, Path(out), device)
    config, derived = derive(config, facts)
    derived = fitted + derived

    with closing(RunFolder(Path(out))) as run:
        # 2. The parts. What cannot work is refused here, before anything is written.
        run.check(config)
        assert isinstance(config.optim.batch_size, int)  # derived by now
        plan = Plan(len(folder), config.optim.batch_size, config.seed)
        num_steps = config.optim.steps or max(round((config.optim.epochs or 0) * plan.steps_per_epoch), 1)
        torch.manual_seed(config.seed)
        crops = config.crops
        backbone = build_backbone(config.backbone, rows_columns(crops.global_size), mean=crops.mean, std=crops.std)
        check_crops(config, backbone.patch_size)
        student_teacher = build_student_teacher(backbone, config, steps_per_epoch=plan.steps_per_epoch).to(device)
        apply_efficiency(student_teacher, replace(config.efficiency, compile=False))  # compiled after the estimate
        optimizer = build_optimizer(student_teacher)
        if config.optim.warmup_epochs and config.optim.warmup_epochs * plan.steps_per_epoch >= num_steps:
            say(
                f"warning: the warm-up takes all of the {num_steps} steps, so the learning rate never falls; a tenth "
                f"is usual: --optim.warmup-epochs {0.1 * num_steps / plan.steps_per_epoch:.2g}"
            )
        schedules = build_schedules(
            config.optim, config.teacher, num_steps=num_steps, steps_per_epoch=plan.steps_per_epoch
        )
        require_readable(folder)
        watch = Watch(config, folder, run, num_steps=num_steps, patch_size=backbone.patch_size, device=device)
        first_step = restore(run, folder, config, student_teacher, optimizer, resume=resume, init_from=init_from)

        # 3. Take the folder.
        command = f"selfpatch pretrain {images} {out} --config THIS FILE"
        run.open(config, header=f"selfpatch {installed_version('selfpatch')}: {command}")
        print_summary(config, folder, student_teacher, derived, num_steps=num_steps, device=device)
        if first_step >= num_steps:
            say(f"this run has already done its {num_steps} steps; a longer one needs a new folder")

        elif num_steps - first_step >= ESTIMATED_STEPS:
            say(estimate(student_teacher, config, num_steps - first_step, device))
        apply_efficiency(student_teacher, config.efficiency)

        # 4. Train.
        trainee = PretrainTask(
            student_teacher,
            optimizer,
            config,
            schedules=schedules,
            steps_per_epoch=plan.steps_per_epoch,
            device=device,
            record_bad_images=lambda bad: refuse_bad_images(run.record_bad_images(bad), len(folder), config, run),
            files_of_step=lambda step: [folder.path(int(i)) for i in plan.indices(step)],
            data_wait_hint=data_wait_hint(config, device),
        )

        def save(step: int) -> dict[str, float]:
            run.save(step, student_teacher, optimizer, folder, config)
            write_backbone(step)
            return {}

        def write_backbone(step: int) -> str:
            metadata = {"recipe": config.recipe, "step": str(step)}
            return export_timm(student_teacher.export_backbone(), run.backbone_file, metadata=metadata)

        save_every = config.run.save_every or min(max(num_steps // 10, 1), 1000)
        logger = MetricLogger(run.metrics_file, first_step=first_step)
        steps_done = first_step
        with StopSignal() as signal, closing(TrainingProgress(first_step, num_steps)) as progress:
            watch.progress = progress
            if first_step < num_steps:
                batches = training_batches(
                    folder,
                    plan,
                    MultiCrop(config.crops, color_in_worker=not augment_on_device(config.efficiency.light, device)),
                    first_step=first_step,
                    stop_step=num_steps,
                    num_workers=num_workers(config.efficiency.num_workers),
                    pin_memory=device.type == "cuda",
                )
                steps_done = train(
                    trainee,
                    prefetch_to_device(batches, device),
                    first_step=first_step,
                    num_steps=num_steps,
                    seed=config.seed,
                    log_every=config.run.log_every,
                    max_skipped=config.run.max_skipped,
                    device=device,
                    logger=logger,
                    progress=progress,
                    callbacks=[*watch.callbacks(student_teacher), PeriodicCallback(save_every, save, at_stop=True)],
                    should_stop=lambda done: signal.received is not None or done == config.run.stop_at_step,
                )
        result = PretrainResult(
            out=run.path,
            steps_done=steps_done,
            num_steps=num_steps,
            scores=watch.scores(),
            backbone_file=run.backbone_file,
            load_line=write_backbone(steps_done),
            stopped_by=signal.received,
        )
    if result.stopped_by:
        say(f"stopped after {steps_done} of {num_steps} steps, saved; the same command goes on from there")
    say(f"import timm; backbone = {result.load_line}")
    return result


def check_crops(config: PretrainConfig, patch_size: tuple[int, int]) -> None:
    """Crops must be whole patches, and hold the window in which SelfPatch looks for positives."""
    selfpatch = config.objectives.selfpatch
    sizes = {"global": config.crops.global_size} | (
        {"local": config.crops.local_size} if config.crops.num_local else {}
    )
    for name, size in sizes.items():
        rows, columns = rows_columns(size)
        if rows % patch_size[0] or columns % patch_size[1]:
            nearest = (
                max(round(rows / patch_size[0]), 1) * patch_size[0],
                max(round(columns / patch_size[1]), 1) * patch_size[1],
            )
            raise UserError(
                f"crops.{name}-size {rows} x {columns} is not a multiple of the patch size {patch_size[0]} x "
                f"{patch_size[1]}; the nearest is {nearest[0]} x {nearest[1]} (crops.{name}-size {nearest[0]})"
            )
        if selfpatch is not None and (name == "global" or selfpatch.crops == "all"):
            neighborhood((rows // patch_size[0], columns // patch_size[1]), selfpatch.window_size, selfpatch.borders)


def restore(
    run: RunFolder,
    folder: ImageFolder,
    config: PretrainConfig,
    student_teacher: StudentTeacher,
    optimizer: torch.optim.Optimizer,
    *,
    resume: Path | str | None,
    init_from: Path | str | None,
) -> int:
    """Load what the run goes on from, in the order that run_folder.py states; returns the number of steps done."""
    found, skipped_checkpoints = run.newest_checkpoint(folder)
    if found is None and skipped_checkpoints and resume is None:
        raise UserError(
            f"no checkpoint of {run.path} can be read: {skipped_checkpoints[0]}. Give another one to go on from "
            "(--resume), or a new folder to start anew"
        )
    for reason in skipped_checkpoints:
        say(f"warning: {reason}; an older checkpoint is used")
    if found is None and resume is not None:
        found = checkpoint.load(Path(resume))
        run.require_same_method(found.state["method"], config, Path(resume))
    if found is not None:
        student_teacher.load_state_dict(found.tensors["model"])
        checkpoint.unflatten_optimizer_state(optimizer, found.tensors["optimizer"])
        say(f"going on from {found.path} at step {found.state['step']}")
        return found.state["step"]
    if init_from is not None:
        backbone = student_teacher.student.backbone
        say(f"starting from {init_from}: {load_weights(backbone, init_from, num_heads=backbone.num_heads)}")
        student_teacher.teacher.backbone.load_state_dict(backbone.state_dict())
    return 0


def refuse_bad_images(count: int, num_images: int, config: PretrainConfig, run: RunFolder) -> int:
    if count > config.run.max_bad_fraction * num_images:
        raise UserError(
            f"{count} of {num_images} images cannot be read, more than run.max-bad-fraction "
            f"{config.run.max_bad_fraction:.0%}; they are listed in {run.bad_images_file}. Fix or remove them"
        )
    return count


def print_summary(
    config: PretrainConfig,
    folder: ImageFolder,
    student_teacher: StudentTeacher,
    derived: list[ResolvedSetting],
    *,
    num_steps: int,
    device: torch.device,
) -> None:
    backbone = student_teacher.student.backbone
    millions = sum(p.numel() for p in backbone.parameters()) / 1e6
    terms = " + ".join(f"{o.weight:g} x {name}" for name, o in student_teacher.objectives.items())
    say(f"{config.recipe}: {config.backbone.name} ({millions:.1f} M parameters) on {device}, loss = {terms}")
    objectives, aggregator = config.objectives, config.aggregator
    if objectives.selfpatch and (objectives.dino is None or (aggregator and aggregator.image_token == "class_token")):
        say("warning: nothing trains the aggregator, which makes SelfPatch's targets: only DINO's image token does")
    say(f"{len(folder)} images, {config.optim.batch_size} a step, {num_steps} steps")
    for setting, value, reason in derived:
        say(f"  {setting} {value:g}: {reason}" if isinstance(value, float) else f"  {setting} {value}: {reason}")
