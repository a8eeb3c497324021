"""Settings that follow from the images, the hardware, the weights to start from, and the run that goes on."""

import math
from dataclasses import replace
from pathlib import Path

import torch

from selfpatch.backbones.backbone import Backbone
from selfpatch.backbones.build import build_backbone
from selfpatch.backbones.pretrained import load_start
from selfpatch.backbones.without_values import without_values
from selfpatch.commands.run_setup.resource_estimate import fit_batch_size
from selfpatch.commands.run_setup.starting_weights import backbone_settings, has_own_norm
from selfpatch.config import IMAGENET_MEAN, IMAGENET_STD, PixelFormat, PretrainConfig, pixel_format
from selfpatch.config.io import config_of, override, read_yaml
from selfpatch.config.ranges import SettingError
from selfpatch.config.renamed import as_begun
from selfpatch.data.derive_pixels import derive_pixels, measure_channels
from selfpatch.data.image_files import ImageFiles
from selfpatch.errors import UserError
from selfpatch.output import checkpoint
from selfpatch.output.terminal import say
from selfpatch.pretraining.run_folder import RunFolder
from selfpatch.recipes.continue_from import CONTINUE_RECIPES
from selfpatch.recipes.derive import ResolvedSetting, RunFacts, default_backbone, derive
from selfpatch.training.precision import fastest_precision, resolve_precision


def resolve_config(
    config: PretrainConfig,
    source: ImageFiles,
    out: Path,
    device: torch.device,
    *,
    resume: Path | str | None,
    init_from: Path | str | None,
) -> tuple[PretrainConfig, list[ResolvedSetting]]:
    """Fill in what follows from the images, the hardware, the run that goes on, and the weights that a new one has.

    `source` reads images in the format that is found.
    """
    # 1. What a run has that goes on, or the weights that a new one has.
    begun = begun_config(out, resume)
    if begun is None and init_from is None and config.recipe in CONTINUE_RECIPES:
        raise UserError(
            f"recipe {config.recipe} continues weights, and none are given; name them by --init-from: a run folder, an "
            "exported file, a checkpoint or folder of another program, or timm:NAME.TAG. To start from random weights "
            "take another recipe, e.g. dino-small"
        )
    start = None
    if begun is None and init_from is not None:
        start = load_start(init_from, num_heads=config.backbone.num_heads)
    config, followed = resolve_backbone(config, begun, start, init_from)

    # 2. What follows from images and hardware.
    config, pixels = resolve_pixels(config, begun, source, start)
    facts = run_facts(config, len(source), device)
    config, fitted = fit_batch_size(config, facts, begun, device)
    config, derived = derive(config, facts)

    # 3. What follows from all of it.
    if config.backbone.final_norm is None:
        final_norm = start is None or has_own_norm(config, start)
        config = override(config, {"backbone.final_norm": final_norm})
    config, normalization = resolve_normalization(config, begun, source, start, init_from)
    config, precision = resolve_run_precision(config, begun, device)
    if begun is not None:
        config = as_begun(config, begun)
    return config, followed + pixels + fitted + derived + normalization + precision


def resolve_backbone(
    config: PretrainConfig, begun: PretrainConfig | None, start: Backbone | None, init_from: Path | str | None
) -> tuple[PretrainConfig, list[ResolvedSetting]]:
    """The network of the run that goes on, or of the weights, where the settings name none; what is given stays."""
    if config.backbone.name is not None:
        return config, []
    if begun is not None:
        settings, reason = vars(begun.backbone), "as this run began"
    elif start is not None:
        settings = backbone_settings(start, patch_size=config.backbone.patch_size)
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


def resolve_pixels(
    config: PretrainConfig, begun: PretrainConfig | None, source: ImageFiles, start: Backbone | None
) -> tuple[PretrainConfig, list[ResolvedSetting]]:
    """Channels, depth and range of values: as given, as the run or the weights began, else as the images have them.

    Raises:
        UserError: the images differ in them, or have others than the ones given.
    """
    names = ("backbone.num-channels", "images.bit-depth", "images.value-range")
    values = [(config.backbone.num_channels, config.images.bit_depth, config.images.value_range)]
    if begun is not None:
        values.append((begun.backbone.num_channels, begun.images.bit_depth, begun.images.value_range))
        found = dict(zip(names, ((value, "as this run began") for value in values[1]), strict=True))
    else:
        given = config.images
        if start is not None and start.pixels.value_range is not None and given.value_range is None:
            given = replace(given, value_range=start.pixels.value_range)
        found = derive_pixels(source, config.backbone.num_channels, given)
        if given is not config.images:
            found["images.value-range"] = (given.value_range, "as the weights were trained")
    resolved = [
        ResolvedSetting(name, *found[name])
        for name, value in zip(names, values[0], strict=True)
        if value is None and found.get(name, (None,))[0] is not None
    ]
    config = override(config, {setting: value for setting, value, _ in resolved})
    source.pixels = pixel_format(config)
    shown = source.pixels.shown_channels or ()
    if any(channel >= source.pixels.num_channels for channel in shown):
        raise UserError(
            f"evaluate.shown-channels are {shown}, and the images have {source.pixels.num_channels}, counted from 0"
        )
    return config, resolved


def resolve_normalization(
    config: PretrainConfig,
    begun: PretrainConfig | None,
    source: ImageFiles,
    start: Backbone | None,
    init_from: Path | str | None,
) -> tuple[PretrainConfig, list[ResolvedSetting]]:
    """Mean and std of the crops where they are not given; a warning where they are not those of the weights."""
    mean, std, reason = IMAGENET_MEAN, IMAGENET_STD, "ImageNet's"
    pixels = source.pixels
    if begun is not None:
        (mean, std), reason = begun.crops.normalization, "as this run began"
    elif start is not None and _alike(start.pixels, pixels):
        mean, std, reason = start.mean, start.std, f"as {init_from} was trained"
    elif not pixels.is_8_bit_rgb and None in (config.crops.mean, config.crops.std):
        measured = measure_channels(source)
        if measured is not None:
            mean, std, reason = measured.mean, measured.std, f"of the pixels of {measured.num_images} images"
    found = {"crops.mean": (config.crops.mean, mean), "crops.std": (config.crops.std, std)}
    for setting, (given, value) in found.items():
        if given not in (None, value) and begun is None and start is not None and _alike(start.pixels, pixels):
            say(f"warning: {setting} is {given} as given, and {init_from} was trained with {value}")
    missing = {setting: value for setting, (given, value) in found.items() if given is None}
    shown = {} if reason == "ImageNet's" else missing
    for setting, (given, value) in found.items():
        if len(given or value) != pixels.num_channels:
            problem = f"it must be {pixels.num_channels} numbers, one per channel of the images"
            raise SettingError("", setting, given or value, problem)
    return override(config, missing), [ResolvedSetting(setting, value, reason) for setting, value in shown.items()]


def resolve_run_precision(
    config: PretrainConfig, begun: PretrainConfig | None, device: torch.device
) -> tuple[PretrainConfig, list[ResolvedSetting]]:
    """Replace efficiency.precision "auto": as the run began, else by what this device computes fastest.

    It is listed where it is no matter of course: bf16 on a CPU, or another precision than this device would get.
    """
    given = config.efficiency.precision
    before = None if begun is None else begun.efficiency.precision
    if given != "auto":
        if before not in (None, "auto", given):
            say(f"warning: efficiency.precision is {given}, this run began with {before}: its numbers differ a little")
        return config, []
    fastest, reason = fastest_precision(device)
    if before == "auto":  # of an earlier version, which took bf16 on GPUs alone
        before = resolve_precision("auto", device)
    precision = before or fastest
    if before is not None and before != fastest:
        reason = f"as this run began; {reason}"
    listed = (device.type == "cpu" and precision == "bf16") or precision != fastest
    resolved = [ResolvedSetting("efficiency.precision", precision, reason)] if listed else []
    return override(config, {"efficiency.precision": precision}), resolved


def _alike(one: PixelFormat, other: PixelFormat) -> bool:
    return one._replace(shown_channels=None) == other._replace(shown_channels=None)


def run_facts(config: PretrainConfig, num_images: int, device: torch.device) -> RunFacts:
    """Facts about the images, the hardware and the backbone, which is built without memory to ask it.

    Raises:
        UserError: timm has no such backbone, or cannot build it with these settings.
    """
    on_gpu = device.type == "cuda"
    named = replace(config.backbone, name=config.backbone.name or default_backbone(on_gpu=on_gpu))
    with without_values():
        backbone = build_backbone(named, (224, 224), mean=IMAGENET_MEAN, std=IMAGENET_STD)
    return RunFacts(
        num_images,
        on_gpu,
        patch_size=math.lcm(*backbone.patch_size),
        embed_dim=backbone.embed_dim,
        has_cls_token=backbone.has_cls_token,
    )
