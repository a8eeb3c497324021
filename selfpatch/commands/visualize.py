"""`selfpatch visualize`: draw what the patches of a model see."""

from dataclasses import replace
from pathlib import Path

from selfpatch.backbones.pretrained import load_backbone
from selfpatch.backbones.run_checkpoint import run_folder
from selfpatch.commands.run_setup.hardware import find_device
from selfpatch.config.io import read_yaml
from selfpatch.config.objectives.patch import PatchConfig
from selfpatch.data.image_folder import read_evenly_spaced
from selfpatch.data.manifest import open_images
from selfpatch.errors import UserError, working
from selfpatch.output.atomic_files import require_writable
from selfpatch.output.terminal import say
from selfpatch.visualization import pictures
from selfpatch.visualization.positives import positives_config


def visualize(
    model: Path | str,
    images: Path | str,
    out: Path | str,
    *,
    count: int = 6,
    image_size: int | None = None,
    pixel: tuple[int, int] | None = None,
    num_positives: int | None = None,
    window_size: int | None = None,
    padding_mode: str | None = None,
    shown_channels: tuple[int, int, int] | None = None,
    num_heads: int | None = None,
    network: str | None = None,
    num_channels: int | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    device: str = "auto",
) -> list[Path]:
    """Write pca.png, similarity.png, positives.png (and attention.png, if there is a class token) to `out`.

    Args:
        model: anything `load_backbone` takes.
        count: how many images, spread evenly over the folder.
        image_size: short side in pixels as the backbone gets them; None: twice what it was built for.
        pixel: (x, y) in the first image, whose patch others are compared with; None: the middle of each.
        shown_channels: three channels to show as red, green and blue, from 0; None: those of the run, else the first.
        num_positives, window_size, padding_mode: how SelfPatch finds positives; None: as the run did.
        num_heads, network, num_channels, mean, std: of a checkpoint, as in `load_backbone`.

    Raises:
        UserError: a model, images or device that are not there, or settings that do not fit them.
    """
    # 1. Model and images.
    given = {"num_positives": num_positives, "window_size": window_size, "padding_mode": padding_mode}
    positives = replace(own_positives(model), **{name: value for name, value in given.items() if value is not None})
    if count < 1:
        raise UserError(f"count is {count}; at least one image is drawn")
    require_writable(Path(out))
    found_device = find_device(device)
    source = open_images(images)
    backbone = load_backbone(
        model, device=found_device, num_heads=num_heads, network=network, num_channels=num_channels, mean=mean, std=std
    )
    if shown_channels is not None:
        if max(shown_channels) >= backbone.num_channels:
            raise UserError(
                f"shown-channels are {shown_channels}, and the model reads {backbone.num_channels}, counted from 0"
            )
        backbone.pixels = backbone.pixels._replace(shown_channels=shown_channels)
    source.pixels = backbone.pixels
    for note in backbone.notes:
        say(note)
    # 2. Pictures.
    shown = list(read_evenly_spaced(source, count))
    with working():
        paths = pictures.visualize(backbone, shown, Path(out), image_size=image_size, pixel=pixel, positives=positives)
    for path in paths:
        say(str(path))
    if not backbone.has_cls_token:
        say(
            f"attention.png is left out: {backbone.architecture.name} has no class token whose attention could be shown"
        )
    return paths


def own_positives(model: Path | str) -> PatchConfig:
    """Settings by which a run finds positives; the paper's if `model` is no run, or one that finds none."""
    config_file = run_folder(model) / "config.yaml"
    return positives_config(read_yaml(config_file).objectives if config_file.is_file() else None)
