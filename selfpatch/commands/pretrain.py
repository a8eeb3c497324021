"""`selfpatch pretrain`: from a folder of images to a trained backbone, with scores and pictures on the way."""

from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from selfpatch.backbones.backbone import Backbone
from selfpatch.backbones.build import build_backbone
from selfpatch.commands.callbacks.monitor import TrainingMonitor
from selfpatch.commands.callbacks.save_run import RunSaver
from selfpatch.commands.launch.processes import joined_run, require_agreement, require_equal_shares
from selfpatch.commands.report.run_report import RunReport
from selfpatch.commands.run_setup.bad_images import refuse_bad_images
from selfpatch.commands.run_setup.crop_sizes import check_crops
from selfpatch.commands.run_setup.resolve_config import resolve_config
from selfpatch.commands.run_setup.restore import restore
from selfpatch.commands.run_setup.run_summary import print_dry_run, print_plan, print_summary
from selfpatch.commands.run_setup.task_and_batches import task_and_batches
from selfpatch.config import PretrainConfig, pixel_format, rows_columns
from selfpatch.config.io import override, to_dict
from selfpatch.data.image_files import ImageFiles
from selfpatch.data.image_folder import require_readable
from selfpatch.data.loading.device_prefetch import prefetch_to_device
from selfpatch.data.loading.sampler import EpochSampler
from selfpatch.data.manifest import open_images
from selfpatch.data.reading.decode import UnreadableImage
from selfpatch.distributed import (
    from_rank_0,
    global_largest,
    is_main,
    on_rank_0,
    together,
    wait_for_all,
    world_size,
)
from selfpatch.errors import working
from selfpatch.output.printable import printable
from selfpatch.output.progress import TrainingProgress
from selfpatch.output.terminal import say
from selfpatch.output.tracking.trackers import Trackers, require_trackers
from selfpatch.output.versions import installed_version
from selfpatch.pretraining.parallel import OneProcess, Sharded, parallelize
from selfpatch.pretraining.run_folder import RunFolder, run_folder
from selfpatch.pretraining.student_teacher import (
    apply_efficiency,
    build_student_teacher,
    plain_attention_of_small_crops,
)
from selfpatch.pretraining.train_state import TrainState
from selfpatch.pretraining.train_step import Schedules, build_optimizer, build_schedules
from selfpatch.recipes import DEFAULT_RECIPE, find_recipe
from selfpatch.recipes.derive import ResolvedSetting
from selfpatch.training.loop import PeriodicCallback, train
from selfpatch.training.memory import memory_advice
from selfpatch.training.stop_signal import StopSignal
from selfpatch.visualization.report.page import REPORT


@dataclass(frozen=True)
class PretrainResult:
    """Results of a run: its folder, its steps and scores, the file of its backbone."""

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
    recipe: str = DEFAULT_RECIPE,
    settings: dict[str, Any] | None = None,
    config: PretrainConfig | None = None,
    resume: Path | str | None = None,
    init_from: Path | str | None = None,
    dry_run: bool = False,
) -> PretrainResult:
    """Train on all images below `images`; everything goes to the folder `out`. Called again, it goes on where it was.

    Args:
        recipe: where the settings come from, e.g. "dino-selfpatch-small"; `config` gives all of them instead.
        settings: changes to them by dotted name, e.g. {"optim.lr": 1e-3, "evaluate.data": "ade20k/"}.
        resume: a checkpoint of another run with the same settings to start from, if `out` has none.
        init_from: a backbone to start from, if there is nothing to go on from: anything `load_backbone` takes.
        dry_run: print what the run would do and take, and write nothing.

    Raises:
        UserError: images, settings, device or `out` do not allow the run; nothing has been written then.
        FailedElsewhereError: on several processes, another one has found so, or failed, and raises the error.
    """
    given = override(config or find_recipe(recipe), settings or {})
    with joined_run(given.run) as device, memory_advice(device):
        # Images and settings, which are resolved once and the same on all ranks.
        with together():
            if is_main():  # which alone writes
                require_trackers(given.track)
            source = open_images(images, given.images)
        require_agreement(given, source)
        config, resolved = on_rank_0(
            lambda: resolve_config(given, source, Path(out), device, resume=resume, init_from=init_from)
        )
        source.pixels = pixel_format(config)  # which rank 0 found
        with closing(run_folder(Path(out))) as run:
            start = _Start(images, resume, init_from, dry_run)
            return _pretrain(config, source, run, resolved, device, start)


class _Start(NamedTuple):
    """Arguments of `pretrain` that say where a run starts from, and whether it does."""

    images: Path | str
    resume: Path | str | None
    init_from: Path | str | None
    dry_run: bool


def _pretrain(
    config: PretrainConfig,
    source: ImageFiles,
    run: RunFolder,
    resolved: list[ResolvedSetting],
    device: torch.device,
    start: _Start,
) -> PretrainResult:
    with together():
        # 1. The parts. What cannot work is refused here, before anything is written.
        run.check(config, source, lock=not start.dry_run)
        require_equal_shares(config)
        parts = build_parts(config, len(source), device)
        require_readable(source)
        monitor = TrainingMonitor(
            config, source, run, num_steps=parts.num_steps, patch_size=parts.backbone.patch_size, device=device
        )
        if is_main():
            restore(run, config, parts.state, resume=start.resume, init_from=start.init_from)

        # 2. Take the folder, and say what will happen.
        if not start.dry_run:
            command = printable(f"selfpatch pretrain {start.images} {run.path} --config THIS FILE", keep="\\")
            run.open(config, source, header=f"selfpatch {installed_version('selfpatch')}: {command}")
        if is_main():
            model, num_steps = parts.state.student_teacher, parts.num_steps
            print_summary(config, source, model, parts.sampler, resolved, num_steps=num_steps, device=device)
            if start.dry_run:
                print_dry_run(
                    config, parts.state, run, num_steps, monitor.every, _save_every(config, num_steps), device
                )
            else:
                print_plan(config, model, first_step=parts.state.step, num_steps=num_steps, device=device)
    if start.dry_run:
        return PretrainResult(run.path, parts.state.step, parts.num_steps, {}, run.backbone_file, load_line="")

    # 3. Train.
    with working(UnreadableImage):
        model = parallelize(
            parts.state,
            config.efficiency.parallel,
            device,
            build_optimizer=lambda student_teacher: build_optimizer(student_teacher, config.optim),
        )
        saver = RunSaver(config, run, parts.state, model)
        report = RunReport(run, resolved, first_step=parts.state.step, writes=is_main())
        stopped_by = run_training(config, source, run, parts, model, monitor, saver, report, device)
        load_line = saver.finish()
        is_reported = report.finish(
            state="stopped before its end" if parts.state.step < parts.num_steps else "finished"
        )
        wait_for_all()  # launchers end all processes when the first one ends
        result = PretrainResult(
            out=run.path,
            steps_done=parts.state.step,
            num_steps=parts.num_steps,
            scores=monitor.scores(),
            backbone_file=run.backbone_file,
            load_line=load_line,
            stopped_by=stopped_by,
        )
    if result.stopped_by:
        say(
            f"stopped after {result.steps_done} of {result.num_steps} steps, saved; the same command goes on from there"
        )
    for sentence in monitor.best.summary(result.out):
        say(sentence)
    if is_reported:
        say(f"look at it: {result.out / REPORT}")
    say(f"import timm; backbone = {result.load_line}")
    return result


class Parts(NamedTuple):
    """All that a run is made of, on its device."""

    sampler: EpochSampler
    num_steps: int
    state: TrainState
    schedules: Schedules

    @property
    def backbone(self) -> Backbone:
        return self.state.student_teacher.student.backbone


def build_parts(config: PretrainConfig, num_images: int, device: torch.device) -> Parts:
    """
    Sharded ones stay on the CPU until then: they may not fit on the device.

    Raises:
        UserError: the backbone, the crops or the batch do not fit each other or the images.
    """
    assert isinstance(config.optim.batch_size, int)  # derived by now
    sampler = EpochSampler(num_images, config.optim.batch_size, config.seed, block_size=config.images.shuffle_block)
    num_steps = config.optim.steps or max(round((config.optim.epochs or 0) * sampler.steps_per_epoch), 1)
    torch.manual_seed(config.seed)
    crops = config.crops
    mean, std = crops.normalization
    backbone = build_backbone(
        config.backbone, rows_columns(crops.global_size), mean=mean, std=std, pixels=pixel_format(config)
    )
    student_teacher = build_student_teacher(backbone, config, steps_per_epoch=sampler.steps_per_epoch)
    student_teacher.to("cpu" if config.efficiency.parallel == "fsdp2" and world_size() > 1 else device)
    check_crops(config, student_teacher)
    apply_efficiency(student_teacher, replace(config.efficiency, compile=False))  # compiled after the estimate
    if device.type == "cpu" and config.efficiency.precision == "bf16":
        plain_attention_of_small_crops(student_teacher, rows_columns(crops.global_size))
    schedules = build_schedules(
        config.optim, config.teacher, num_steps=num_steps, steps_per_epoch=sampler.steps_per_epoch
    )
    return Parts(
        sampler, num_steps, TrainState(student_teacher, build_optimizer(student_teacher, config.optim)), schedules
    )


def run_training(
    config: PretrainConfig,
    source: ImageFiles,
    run: RunFolder,
    parts: Parts,
    model: OneProcess,
    monitor: TrainingMonitor,
    saver: RunSaver,
    report: RunReport,
    device: torch.device,
) -> int | None:
    """Train from where the state is to the end, or until stopped; returns the signal that stopped it before."""
    # 1. From where to where, if there is anything to do.
    state, first_step, num_steps = parts.state, parts.state.step, parts.num_steps
    stop_at = config.run.stop_at_step or num_steps
    if first_step >= min(stop_at, num_steps):
        return None
    efficiency = config.efficiency
    if isinstance(model, Sharded) and efficiency.activation_checkpointing == "selective":
        efficiency = replace(efficiency, activation_checkpointing="none")  # which it is for shards; the summary says so
    apply_efficiency(state.student_teacher, efficiency)

    # 2. The task, its batches, and what saves it.
    task, batches = task_and_batches(
        config,
        source,
        parts.state,
        parts.schedules,
        parts.sampler,
        model,
        device,
        steps=range(first_step, num_steps),
        record_bad_images=lambda bad: refuse_bad_images(run.record_bad_images(bad), len(source), config, run),
    )
    logger = run.metric_logger(first_step=first_step)
    trackers = Trackers(
        config.track if is_main() else (),
        run.path,
        logger,
        settings=to_dict(config),
        first_step=first_step,
        pictures=run.pictures,
    )

    def save(step: int) -> dict[str, float]:
        saver.save(monitor.best.metrics(logger.latest, step), num_best=monitor.best.count)
        return {}

    def save_if_best(step: int) -> dict[str, float]:
        if monitor.best.count:
            saver.writer.wait()  # the checkpoint under way is compared as well
        is_best = monitor.best.has_place_for(monitor.best.metrics(logger.latest, step))
        return save(step) if from_rank_0(is_best) else {}

    def should_stop(done: int) -> bool:
        saver.writer.raise_error()
        return signal.received is not None or done >= stop_at or task.must_stop

    tracking = PeriodicCallback(monitor.every, trackers.log_pictures, at_start=True)
    reporting = PeriodicCallback(monitor.every, report.update, at_start=True)
    saving_best = PeriodicCallback(monitor.every, save_if_best, at_start=True, saves=True)
    within_budget = config.run.save_every is None
    save_every = _save_every(config, num_steps)
    saving = PeriodicCallback(save_every, save, at_stop=True, within_budget=within_budget, saves=True)
    # 3. The loop.
    progress = TrainingProgress(first_step, num_steps)
    with closing(trackers), StopSignal() as signal, closing(progress), saver.writer:
        monitor.progress = progress
        train(
            task,
            prefetch_to_device(batches, device),
            first_step=first_step,
            num_steps=num_steps,
            seed=config.seed,
            log_every=config.run.log_every,
            max_skipped=config.run.max_skipped,
            device=device,
            logger=logger,
            progress=progress,
            callbacks=[*monitor.callbacks(model.export_backbone), tracking, reporting, saving_best, saving],
            should_stop=should_stop,
            stacks_after_s=0.8 * config.run.rank_timeout_s,  # before the others give up
        )
    received = global_largest(int(signal.received or 0))  # on any rank: all end with the same exit code
    return received or None if state.step < num_steps else None  # too late to stop anything


def _save_every(config: PretrainConfig, num_steps: int) -> int:
    return config.run.save_every or min(max(num_steps // 10, 1), 1000)
