"""Settings that follow from the images, the hardware, the weights to start from, and the run that goes on."""

import math
from dataclasses import replace
from pathlib import Path

import torch

from selfpatch.backbones.backbone import Backbone
from selfpatch.backbones.build import build_backbone
from selfpatch.backbones.pretrained import load_start
from selfpatch.commands.resource_estimate import fit_batch_size
from selfpatch.commands.starting_weights import backbone_settings, has_own_norm
from selfpatch.config import IMAGENET_MEAN, IMAGENET_STD, PretrainConfig
from selfpatch.config.io import config_of, override, read_yaml
from selfpatch.config.renamed import as_begun
from selfpatch.errors import UserError
from selfpatch.output import checkpoint
from selfpatch.output.progress import say
from selfpatch.pretraining.run_folder import RunFolder
from selfpatch.recipes.continue_from import CONTINUE_RECIPES
from selfpatch.recipes.derive import ResolvedSetting, RunFacts, default_backbone, derive


def resolve_config(
    config: PretrainConfig,
    num_images: int,
    out: Path,
    device: torch.device,
    *,
    resume: Path | str | None,
    init_from: Path | str | None,
) -> tuple[PretrainConfig, list[ResolvedSetting]]:
    """Fill in what follows from the images, the hardware, the run that goes on, and the weights that a new one has."""
    # 1. What a run has that goes on, or the weights that a new one has.
    begun = begun_config(out, resume)
    if begun is None and init_from is None and config.recipe in CONTINUE_RECIPES:
        raise UserError(
            f"recipe {config.recipe} continues weights, and none are given; name them by --init-from: a run folder, an "
            "exported file, a checkpoint or folder of another program, or timm:NAME.TAG. To start from random weights "
            "take another recipe, e.g. dino-small"
        )
    source = None
    if begun is None and init_from is not None:
        source = load_start(init_from, num_heads=config.backbone.num_heads)
    config, followed = resolve_backbone(config, begun, source, init_from)

    # 2. What follows from images and hardware.
    facts = run_facts(config, num_images, device)
    config, fitted = fit_batch_size(config, facts, begun, device)
    config, derived = derive(config, facts)

    # 3. What follows from all of it.
    if config.backbone.final_norm is None:
        final_norm = source is None or has_own_norm(config, source)
        config = override(config, {"backbone.final_norm": final_norm})
    config, normalization = resolve_normalization(config, begun, source, init_from)
    if begun is not None:
        config = as_begun(config, begun)
    return config, followed + fitted + derived + normalization


def resolve_backbone(
    config: PretrainConfig, begun: PretrainConfig | None, source: Backbone | None, init_from: Path | str | None
) -> tuple[PretrainConfig, list[ResolvedSetting]]:
    """The network of the run that goes on, or of the weights, where the settings name none; what is given stays."""
    if config.backbone.name is not None:
        return config, []
    if begun is not None:
        settings, reason = vars(begun.backbone), "as this run began"
    elif source is not None:
        settings = backbone_settings(source, patch_size=config.backbone.patch_size)
        reason = f"as {init_from} is built"
    else:
        return config, []
    is_open = {name: getattr(config.backbone, name) in (None, ()) for name in settings}
    found = {name: value for name, value in settings.items() if is_open[name] and value not in (None, ())}
    rest = ", ".join(f"{name.replace('_', '-')} {value}" for name, value in found.items() if name != "name")
    resolved = ResolvedSetting("backbone.name", found["name"], f"{reason}{f', with {rest}' if rest else ''}")
    return override(config, {f"backbone.{name}": value for name, value in found.items()}), [resolved]


def begun_config(out: Path, resume: Path | str | None) -> PretrainConfig | None:
    """Settings of the run that goes on: OUT's own, or the one that the checkpoint `resume` is of; None: a new run."""
    config_file = RunFolder(out).config_file
    if config_file.is_file():
        return read_yaml(config_file)
    method = None if resume is None else checkpoint.load_state(Path(resume)).get("method")
    return None if method is None else config_of(method)


def resolve_normalization(
    config: PretrainConfig, begun: PretrainConfig | None, source: Backbone | None, init_from: Path | str | None
) -> tuple[PretrainConfig, list[ResolvedSetting]]:
    """Mean and std of the crops where they are not given; a warning where they are not those of the weights."""
    mean, std, reason = IMAGENET_MEAN, IMAGENET_STD, "ImageNet's"
    if begun is not None:
        (mean, std), reason = begun.crops.normalization, "as this run began"
    elif source is not None:
        (mean, std), reason = (source.mean, source.std), f"as {init_from} was trained"
    found = {"crops.mean": (config.crops.mean, mean), "crops.std": (config.crops.std, std)}
    for setting, (given, value) in found.items():
        if given not in (None, value) and source is not None:
            say(f"warning: {setting} is {given} as given, and {init_from} was trained with {value}")
    missing = {setting: value for setting, (given, value) in found.items() if given is None}
    shown = {} if reason == "ImageNet's" else missing
    return override(config, missing), [ResolvedSetting(setting, value, reason) for setting, value in shown.items()]


def run_facts(config: PretrainConfig, num_images: int, device: torch.device) -> RunFacts:
    """Facts about the images, the hardware and the backbone, which is built without memory to ask it.

    Raises:
        UserError: timm has no such backbone, or cannot build it with these settings.
    """
    on_gpu = device.type == "cuda"
    named = replace(config.backbone, name=config.backbone.name or default_backbone(on_gpu=on_gpu))
    with torch.device("meta"):
        backbone = build_backbone(named, (224, 224), mean=IMAGENET_MEAN, std=IMAGENET_STD)
    return RunFacts(
        num_images,
        on_gpu,
        patch_size=math.lcm(*backbone.patch_size),
        embed_dim=backbone.embed_dim,
        has_cls_token=backbone.has_cls_token,
    )
