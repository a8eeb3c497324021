"""`selfpatch show`: state, settings, scores and health of a run, from the files in its folder."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open

from selfpatch.backbones.backbone import Architecture
from selfpatch.commands.callbacks.best_checkpoints import SCORES
from selfpatch.config import PretrainConfig
from selfpatch.config.io import differences, read_yaml, to_dict
from selfpatch.data.loading.sampler import EpochSampler
from selfpatch.errors import UserError
from selfpatch.output import checkpoint
from selfpatch.output.checkpoint import is_loss
from selfpatch.output.folder_lock import owner_of
from selfpatch.output.metric_logger import read_metrics
from selfpatch.output.terminal import say
from selfpatch.pretraining.health import Health, State
from selfpatch.pretraining.run_folder import RunFolder
from selfpatch.recipes import RECIPES


def show(run: Path | str) -> None:
    """Print what a run is, how far it is and how it does. Reads only.

    Raises:
        UserError: `run` is no folder of a run, or its config.yaml is damaged.
    """
    folder = RunFolder(Path(run))
    if not folder.config_file.is_file():
        raise UserError(
            f"{run} is no folder of a run (there is no {folder.config_file}); give the OUT of a pretrain command"
        )
    config = read_yaml(folder.config_file)
    lines = read_metrics(folder.metrics_file)
    for text in [
        *state(folder, config, lines),
        *changed_settings(config),
        *scores(lines),
        *health(lines),
        *kept(folder),
        *how_to_load(folder),
    ]:
        say(text)


class Length(NamedTuple):
    """Steps that a run has done, and how many it will; None: not known."""

    saved_step: int
    num_steps: int | None
    num_images: int | None


def length(folder: RunFolder, config: PretrainConfig) -> Length:
    saved = checkpoint.latest_state(folder.checkpoints)
    images = saved or folder.read_images()
    num_images, num_steps = images.get("num_images"), config.optim.steps
    if num_steps is None and num_images and isinstance(config.optim.batch_size, int):
        sampler = EpochSampler(num_images, config.optim.batch_size, config.seed)
        num_steps = max(round((config.optim.epochs or 0) * sampler.steps_per_epoch), 1)
    return Length(saved.get("step", 0), num_steps, num_images)


def state(folder: RunFolder, config: PretrainConfig, lines: list[dict[str, Any]]) -> Iterator[str]:
    done, num_steps, num_images = length(folder, config)
    logged = lines[-1]["step"] if lines else 0
    owner = owner_of(folder.path)
    if owner is not None:
        now = f"running (process {owner.get('pid', '?')} on {owner.get('host', '?')}), logged up to step {logged}"
    elif num_steps is not None and done >= num_steps:
        now = "finished"
    else:
        now = "stopped; the same command goes on from there"
    yield f"{folder.path}: {config.recipe}, {config.backbone.name}, {num_images or '?'} images"
    yield f"saved at step {done} of {num_steps or '?'}, {now}"


def changed_settings(config: PretrainConfig) -> Iterator[str]:
    if config.recipe not in RECIPES:
        yield f"settings: recipe {config.recipe} is not known to this version; all are in config.yaml"
        return
    lines = differences(to_dict(RECIPES[config.recipe]()), to_dict(config))
    yield (
        f"settings that differ from recipe {config.recipe} (recipe -> run; from None: derived):"
        if lines
        else (f"settings: those of recipe {config.recipe}")
    )
    yield from (f"  {line}" for line in lines)


class LastAndBest(NamedTuple):
    """A loss or score of a run."""

    name: str
    last: float
    last_step: int
    best: float
    best_step: int


def last_and_best(lines: list[dict[str, Any]]) -> Iterator[LastAndBest]:
    """Of every loss and score the last value and the best one, with their steps."""
    names = dict.fromkeys(name for line in lines for name in line if is_loss(name) or name in SCORES)
    for name in names:
        values = [(line[name], line["step"]) for line in lines if isinstance(line.get(name), int | float)]
        if values:
            value, step = values[-1]
            best, at = (min if is_loss(name) else max)(values, key=lambda pair: pair[0])
            yield LastAndBest(name, value, step, best, at)


def scores(lines: list[dict[str, Any]]) -> Iterator[str]:
    found = list(last_and_best(lines))
    if not found:
        yield "no numbers yet"
    for name, value, step, best, at in found:
        yield f"{name}: {value:.4f} at step {step}, best {best:.4f} at step {at}"


def health_of(lines: list[dict[str, Any]]) -> tuple[State, str]:
    """The state at the end of the log, in words."""
    found, said = Health(), None
    for line in lines:
        if "loss" in line:
            said = found.update(line) or said
    return found.state, said if said and found.symptom else "health OK (docs/health.md)"


def health(lines: list[dict[str, Any]]) -> Iterator[str]:
    if lines:
        yield health_of(lines)[1]


def kept(folder: RunFolder) -> Iterator[str]:
    if steps := [checkpoint.step_of(path) for path in checkpoint.checkpoints_in(folder.checkpoints)]:
        yield f"checkpoints: {', '.join(map(str, steps))} ({folder.path}@step-{steps[-1]} names one)"


def how_to_load(folder: RunFolder) -> Iterator[str]:
    """The lines of Python that load the backbone: with its tokens, and in plain timm."""
    try:
        with safe_open(folder.backbone_file, framework="numpy") as file:
            metadata = file.metadata()
        architecture = Architecture(metadata["architecture"], json.loads(metadata["arguments"]))
    except (OSError, SafetensorError, KeyError, ValueError, TypeError):
        yield "nothing to load yet: backbone.safetensors is written with the first checkpoint"
        return
    yield f"import selfpatch; backbone = selfpatch.load_backbone({str(folder.path)!r})"
    yield f"import timm; backbone = {architecture.as_code(checkpoint_path=str(folder.backbone_file))}"
