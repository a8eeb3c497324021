"""What is printed before a run starts: model, images, settings that follow from them, warnings, time and memory."""

from collections.abc import Iterator

import torch

from selfpatch.commands.run_setup.resource_estimate import estimate
from selfpatch.config import PretrainConfig
from selfpatch.data.loading.sampler import EpochSampler
from selfpatch.data.source import ImageSource
from selfpatch.distributed import alone, world_size
from selfpatch.output.terminal import say
from selfpatch.pretraining.run_folder import RunFolder
from selfpatch.pretraining.student_teacher import StudentTeacher
from selfpatch.pretraining.train_state import TrainState
from selfpatch.recipes.derive import ResolvedSetting

# A shorter run is over before an estimate of it helps.
ESTIMATED_STEPS = 100


def print_summary(
    config: PretrainConfig,
    source: ImageSource,
    student_teacher: StudentTeacher,
    sampler: EpochSampler,
    resolved: list[ResolvedSetting],
    *,
    num_steps: int,
    device: torch.device,
) -> None:
    objectives = student_teacher.named_objectives
    millions = sum(p.numel() for p in student_teacher.student.backbone.parameters()) / 1e6
    total = " + ".join(f"{objective.weight:g} x {name}" for name, objective in objectives.items())
    say(f"{config.recipe}: {config.backbone.name} ({millions:.1f} M parameters) on {device}, loss = {total}")
    batch_size = sampler.batch_size
    shared = f" ({batch_size // world_size()} in each of {world_size()} processes)" if world_size() > 1 else ""
    say(f"{len(source)} images, {batch_size} per step{shared}, {num_steps} steps")
    for note in source.notes:
        say(f"  {note}")
    for warning in config_warnings(config, student_teacher, num_steps, sampler.steps_per_epoch):
        say(f"warning: {warning}")
    for setting, value, reason in resolved:
        say(f"  {setting} {value:g}: {reason}" if isinstance(value, float) else f"  {setting} {value}: {reason}")


def print_plan(
    config: PretrainConfig, student_teacher: StudentTeacher, *, first_step: int, num_steps: int, device: torch.device
) -> None:
    """From where to where the run goes, and for a long one what it takes."""
    stop_at = config.run.stop_at_step or num_steps
    if first_step >= num_steps:
        say(f"this run has already done its {num_steps} steps; a longer one needs a new folder")
    elif first_step >= stop_at:
        say(f"this run is at step {first_step} and stops at step {stop_at} (run.stop-at-step)")
    elif num_steps - first_step >= ESTIMATED_STEPS and next(student_teacher.parameters()).device.type == device.type:
        with alone():
            say(estimate(student_teacher, config, num_steps - first_step, device))


def print_dry_run(
    config: PretrainConfig,
    state: TrainState,
    run: RunFolder,
    num_steps: int,
    picture_every: int,
    save_every: int,
    device: torch.device,
) -> None:
    """The plan of a run that is not started: what it would write, how large and how often, what it takes."""
    stop_at = min(config.run.stop_at_step or num_steps, num_steps)
    verb = "go on" if state.step else "start"
    if state.step >= stop_at:
        say(f"dry run, nothing is written: this run would do nothing, as step {state.step} of {stop_at} is done")
        return
    sizes = {
        size: sum(tensor.nbytes for tensor in tensors)
        for size, tensors in {
            "model": list(state.student_teacher.state_dict().values()),
            "trained": [p for p in state.student_teacher.parameters() if p.requires_grad],
            "backbone": list(state.student_teacher.student.backbone.state_dict().values()),
        }.items()
    }
    saved = sizes["model"] + 2 * sizes["trained"]  # AdamW keeps two numbers per weight
    kept = config.run.max_to_keep + (config.run.keep_best or 0)
    say(f"dry run, nothing is written: this run would {verb} at step {state.step} and end at step {stop_at}")
    say(f"to {run.path} it would write:")
    say(f"  config.yaml and metrics.jsonl, a line every {config.run.log_every} steps")
    say(
        f"  checkpoints of {saved / 1e6:.1f} MB every {save_every} steps, of which {kept} are kept "
        f"({kept * saved / 1e9:.2f} GB), and backbone.safetensors ({sizes['backbone'] / 1e6:.1f} MB)"
    )
    scored = " and scores" if config.evaluate.data is not None else ""
    say(f"  pictures{scored} every {picture_every} steps")
    for name in config.track:
        say(f"  tracking/{name}")
    if next(state.student_teacher.parameters()).device.type == device.type:
        with alone():
            say(estimate(state.student_teacher, config, stop_at - state.step, device))


def config_warnings(
    config: PretrainConfig, student_teacher: StudentTeacher, num_steps: int, steps_per_epoch: int
) -> Iterator[str]:
    """Settings that are allowed and most likely not wanted."""
    warmup_epochs = config.optim.warmup_epochs or 0
    efficiency = config.efficiency
    if efficiency.parallel == "fsdp2" and efficiency.activation_checkpointing == "selective" and world_size() > 1:
        yield (
            "efficiency.activation-checkpointing selective has no effect on shards (efficiency.parallel fsdp2); full "
            "has, and saves more"
        )
    if warmup_epochs and warmup_epochs * steps_per_epoch >= num_steps:
        yield (
            f"the warm-up takes all of the {num_steps} steps, so the learning rate never falls; a tenth is "
            f"usual: --optim.warmup-epochs {0.1 * num_steps / steps_per_epoch:.2g}"
        )
    objectives = student_teacher.named_objectives
    trains_aggregator = student_teacher.student.aggregates_image_token and any(
        objective.needs.image_token for objective in objectives.values()
    )
    for name, objective in objectives.items():
        if objective.needs.aggregator and not trains_aggregator:
            yield (
                f"nothing trains the aggregator that makes the targets of objectives.{name}: an objective on the image "
                "token does, if that token comes from it (aggregator.image-token aggregator)"
            )
