"""Settings that follow from the images, the hardware, the weights to start from, and the run that goes on."""

import math
from dataclasses import replace
from pathlib import Path

import torch

from selfpatch.backbones.build import build_backbone
from selfpatch.backbones.pretrained import load_start
from selfpatch.commands.resource_estimate import fit_batch_size
from selfpatch.config import IMAGENET_MEAN, IMAGENET_STD, PretrainConfig
from selfpatch.config.io import config_of, override, read_yaml
from selfpatch.config.renamed import as_begun
from selfpatch.output import checkpoint
from selfpatch.output.progress import say
from selfpatch.pretraining.run_folder import RunFolder
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
    begun = begun_config(out, resume)
    facts = run_facts(config, num_images, device)
    config, fitted = fit_batch_size(config, facts, begun, device)
    config, derived = derive(config, facts)
    config, normalization = resolve_normalization(config, begun, init_from)
    if begun is not None:
        config = as_begun(config, begun)
    return config, fitted + derived + normalization


def begun_config(out: Path, resume: Path | str | None) -> PretrainConfig | None:
    """Settings of the run that goes on: OUT's own, or the one that the checkpoint `resume` is of; None: a new run."""
    config_file = RunFolder(out).config_file
    if config_file.is_file():
        return read_yaml(config_file)
    method = None if resume is None else checkpoint.load_state(Path(resume)).get("method")
    return None if method is None else config_of(method)


def resolve_normalization(
    config: PretrainConfig, begun: PretrainConfig | None, init_from: Path | str | None
) -> tuple[PretrainConfig, list[ResolvedSetting]]:
    """Mean and std of the crops where they are not given; a warning where they are not those of the weights."""
    mean, std, reason = IMAGENET_MEAN, IMAGENET_STD, "ImageNet's"
    if begun is not None:
        (mean, std), reason = begun.crops.normalization, "as this run began"
    elif init_from is not None:
        start = load_start(init_from, num_heads=config.backbone.num_heads)
        mean, std, reason = start.mean, start.std, f"as {init_from} was trained"
    found = {"crops.mean": (config.crops.mean, mean), "crops.std": (config.crops.std, std)}
    for setting, (given, value) in found.items():
        if given not in (None, value) and begun is None and init_from is not None:
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
    return RunFacts(num_images, on_gpu, patch_size=math.lcm(*backbone.patch_size), embed_dim=backbone.embed_dim)
