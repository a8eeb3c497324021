"""The settings of every candidate that trains: its recipe, at a budget that all of them have in common."""

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml

from selfpatch.backbones.backbone import Backbone
from selfpatch.backbones.build import is_swin
from selfpatch.commands.run_setup.resolve_config import resolve_config
from selfpatch.commands.run_setup.starting_weights import backbone_settings
from selfpatch.config import PretrainConfig, rows_columns
from selfpatch.config.io import override, to_dict
from selfpatch.config.study import StudyConfig
from selfpatch.data.image_files import ImageFiles
from selfpatch.errors import UserError
from selfpatch.recipes import find_recipe
from selfpatch.recipes.candidates import RANDOM, needs_weights, recipe_of, trains

# Settings that are the same for all candidates that train.
COMMON = ("crops.global_size", "crops.local_size", "crops.num_local", "optim.batch_size", "optim.accumulate")
# What a study decides itself: these, and all of these groups.
RESERVED, RESERVED_GROUPS = ("seed", "optim.steps", "optim.epochs", "recipe"), ("run.", "evaluate.")
# Which files: decided when the images are listed, for all candidates.
OF_THE_LIST = ("images.include", "images.exclude")


class Runs(NamedTuple):
    """The runs of a study before their length is known.

    Args:
        given: by candidate, settings as they are handed to a training.
        resolved: the same with everything that follows from images, hardware and weights; of RANDOM too.
        longest: steps of the longest of these recipes.
        common: COMMON, by name.
    """

    given: dict[str, PretrainConfig]
    resolved: dict[str, PretrainConfig]
    longest: int
    common: dict[str, Any]


def read_settings(words: tuple[str, ...]) -> dict[str, Any]:
    """Settings by dotted name, out of name=value.

    Raises:
        UserError: not of this form, or a setting that a study decides itself.
    """
    settings = {}
    for word in words:
        name, equals, value = word.partition("=")
        name = name.strip().removeprefix("--").replace("-", "_")
        if not equals:
            raise UserError(f"set has {word!r}; settings are written name=value, e.g. crops.global-size=96")
        if name in RESERVED or name.startswith(RESERVED_GROUPS):
            raise UserError(
                f"set has {word!r}, which a study decides itself: length by --hours or --steps, seeds by --seeds, the "
                "device by --device, labels by --labels; leave it out"
            )
        try:
            settings[name] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise UserError(
                f"set has {word!r}, whose value cannot be read; write a number, a word or [a, list]"
            ) from error
    return settings


def plan_runs(
    names: tuple[str, ...],
    source: ImageFiles,
    study: StudyConfig,
    *,
    init_from: str | None,
    weights: Backbone | None,
    device: torch.device,
    nowhere: Path,
    common: dict[str, Any] | None = None,
) -> Runs:
    """The settings of every candidate, with sizes and batch of the first one that trains.

    Args:
        common: COMMON as a study that goes on began; None: as follows from the first one that trains.
        weights: those of `init_from`.
        nowhere: a folder that is not there, as none of these runs has begun.

    Raises:
        UserError: a setting that does not exist, or that candidates cannot have in common.
    """
    settings = read_settings(study.set)
    unused = dict(settings)
    given: dict[str, PretrainConfig] = {}
    resolved: dict[str, PretrainConfig] = {}
    common = dict(common or {})
    steps = {}
    for name in [*filter(trains, names), *(name for name in names if name == RANDOM)]:
        recipe = recipe_of(name, names)
        own = {key: value for key, value in settings.items() if takes(find_recipe(recipe), key)}
        unused = {key: value for key, value in unused.items() if key not in own}
        config = candidate_config(recipe, own, weights, device)
        wanted = {key: value for key, value in common.items() if key != "crops.num_local" or config.crops.num_local}
        config = override(config, wanted)
        start = init_from if needs_weights(name) else None
        full, _ = resolve_config(config, source, nowhere, device, resume=None, init_from=start)
        if not common:
            flat = to_dict(full)
            common = {key: flat[key.split(".")[0]][key.split(".")[1]] for key in COMMON}
        given[name], resolved[name] = config, full
        if trains(name):
            assert isinstance(full.optim.batch_size, int)
            steps_per_epoch = max(len(source) // full.optim.batch_size, 1)
            steps[name] = max(round((full.optim.epochs or 0) * steps_per_epoch), full.optim.steps or 1)
    if unused:
        override(next(iter(resolved.values())), unused)  # says what is wrong with it
    trained = {name: config for name, config in given.items() if name != RANDOM}
    return Runs(trained, resolved, max(steps.values(), default=0), common)


def candidate_config(
    recipe: str, settings: dict[str, Any], weights: Backbone | None, device: torch.device
) -> PretrainConfig:
    """A recipe with what was set; from scratch it has the network of the weights, if there are any."""
    config = find_recipe(recipe)
    continues = needs_weights(recipe)
    changes = {
        key: value
        for key, value in settings.items()
        if key not in OF_THE_LIST and not (continues and key.startswith("backbone.") and key != "backbone.num_heads")
    }
    if not continues and weights is not None and "backbone.name" not in settings:
        network = backbone_settings(weights, patch_size=None)
        own = {key: network[key] for key in network if key not in ("class_token", "image_size")}
        changes = {f"backbone.{key}": value for key, value in own.items() if value not in (None, ())} | changes
        if is_swin(network["name"]):
            changes = {"backbone.final_norm": True} | changes
    warmup = {} if "optim.warmup_epochs" in settings else {"optim.warmup_epochs": None}  # a tenth of what is planned
    config = override(config, warmup | changes)
    run = replace(config.run, device=str(device), max_to_keep=1, keep_best=0)
    return replace(config, run=run)


def takes(config: PretrainConfig, setting: str) -> bool:
    """True if a recipe has a use for a setting: not every one has every objective, or local crops."""
    if setting == "crops.num_local" and config.crops.num_local == 0:
        return False
    group = to_dict(config)
    for key in setting.split(".")[:-1]:
        group = group.get(key) if isinstance(group, dict) else None
    return isinstance(group, dict)


def with_length(config: PretrainConfig, *, steps: int, seed: int) -> PretrainConfig:
    return replace(config, optim=replace(config.optim, steps=steps), seed=seed)


def describe_budget(config: PretrainConfig, num_images: int, steps: int) -> dict[str, Any]:
    """Settings that all candidates that train have in common, for study.json."""
    crops, optim = config.crops, config.optim
    assert isinstance(optim.batch_size, int)
    return {
        "num_images": num_images,
        "steps": steps,
        "images_per_step": optim.batch_size,
        "images_seen": steps * optim.batch_size,
        "global_crops": [crops.num_global, *rows_columns(crops.global_size)],
        "local_crops": [crops.num_local, *rows_columns(crops.local_size)],
    }
