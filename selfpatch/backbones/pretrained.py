"""A backbone out of whatever holds one: a run, an exported file, a checkpoint of another program, or timm."""

import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from selfpatch.backbones.backbone import Architecture, Backbone
from selfpatch.backbones.build import create_timm, set_norm_eps, wrap_timm
from selfpatch.backbones.checkpoints.dino import read_training_state
from selfpatch.backbones.checkpoints.exported import (
    ARCHITECTURE_ARGUMENTS,
    FORMAT_KEY,
    FORMAT_VERSION,
    Description,
    read_description,
)
from selfpatch.backbones.checkpoints.formats import convert_checkpoint
from selfpatch.backbones.checkpoints.initialization import LoadedWeights, initialize
from selfpatch.backbones.checkpoints.match import check_depth, check_match, load_matching, match_tensors
from selfpatch.backbones.checkpoints.networks import unwrap
from selfpatch.backbones.checkpoints.sidecar import Normalization, check_normalization
from selfpatch.backbones.checkpoints.vit_structure import UnknownHeadsError
from selfpatch.backbones.checkpoints.weights_io import check_weights, read_checkpoint, read_metadata
from selfpatch.backbones.run_checkpoint import find_run_checkpoint, read_run_checkpoint
from selfpatch.backbones.timm_weights import load_swin, load_timm, with_fixed_seed
from selfpatch.backbones.vit import ViT
from selfpatch.backbones.without_values import without_values
from selfpatch.errors import UserError
from selfpatch.output.checkpoint import step_of

__all__ = [
    "ARCHITECTURE_ARGUMENTS", "FORMAT_KEY", "FORMAT_VERSION", "LoadedWeights", "load_backbone", "load_vit",
    "load_weights",
]  # fmt: skip

# How the names of models begin that are no plain vision transformers.
SWIN = "timm:swin_"
# What a run writes its backbone to, in its folder.
RUN_FILE = "backbone.safetensors"
# OWNER/NAME, as Hugging Face names models.
HUB_NAME = re.compile(r"[\w-]+/[\w.-]+")
# Weights in folders of Hugging Face, timm and OpenCLIP, in order of preference.
FOLDER_FILES = (
    "model.safetensors",
    "pytorch_model.bin",
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.bin",
    "model.safetensors.index.json",
    "pytorch_model.bin.index.json",
)


def load_backbone(
    model: str | Path,
    *,
    device: str | torch.device = "cpu",
    pos_embed_interpolation: str | None = None,
    num_heads: int | None = None,
    network: str | None = None,
    num_channels: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Backbone:
    """A backbone in evaluation mode, with the `mean` and `std` of its images; its `notes` are for the user.

    Args:
        model: a run folder, a checkpoint of it (RUN@best, RUN@last, RUN@step-400), an exported file, a checkpoint of
            another program (docs/models.md lists them) or the folder that Hugging Face keeps it in, `timm:NAME.TAG` for
            weights that timm may download, or `timm:NAME` for random ones, always the same.
        pos_embed_interpolation: None is what the original program does for its checkpoints, else "antialias".
        num_heads: of a checkpoint whose width is unusual; else it is known.
        network: prefix of the network to read, in a checkpoint of several.
        num_channels: of the images, for timm:NAME; its first layer for RGB is adapted to them by timm's rule, and they
            are read at full depth. None: as the model has.
        mean, std: what images are normalized with, for values in [0, 1], by channel; None: as the file, its name or a
            config.json beside it says.

    Raises:
        UserError: nothing there, not a backbone, damaged, not finite, a checkpoint that lacks tensors or has unknown
            ones, or leaves open what is needed.
    """
    # 1. What goes together.
    if (mean is None) != (std is None):
        raise UserError("mean and std go together (--mean and --std): give both, or neither")
    count = num_channels or (3 if mean is None or len(mean) != len(std or ()) else len(mean) or 3)
    normalization = None if mean is None else check_normalization(mean, std, source="as given", num_channels=count)
    found = None if str(model).startswith("timm:") else find_run_checkpoint(model)
    if network is not None and (found or str(model).startswith("timm:")):
        raise UserError(f"{model} is one network; leave out network, which chooses among those of a checkpoint")
    # 2. The model, by where it is from.
    if str(model).startswith(SWIN):
        if (num_heads, pos_embed_interpolation) != (None, None):
            raise UserError(
                f"{model} has attention heads by stage and no position embeddings to resample; leave out num-heads and "
                "pos-embed-interpolation, which are for plain vision transformers"
            )
        backbone = load_swin(str(model).removeprefix("timm:"), num_channels)
    elif str(model).startswith("timm:"):
        backbone = load_timm(str(model).removeprefix("timm:"), pos_embed_interpolation or "antialias", num_channels)
    elif found is not None:
        backbone = _load_described(found.path, *read_run_checkpoint(found), pos_embed_interpolation or "antialias")
        backbone.notes = (f"the backbone at step {step_of(found.path)} of the run {found.run}",)
    else:
        file = _find_file(Path(model))
        metadata = read_metadata(file)
        if FORMAT_KEY not in metadata:
            backbone = _load_checkpoint(file, num_heads, pos_embed_interpolation, network, normalization)
        elif network is None:
            described = read_description(file, metadata), read_checkpoint(file).tensors
            backbone = _load_described(file, *described, pos_embed_interpolation or "antialias")
        else:
            raise UserError(f"{file} is one network; leave out network, which chooses among those of a checkpoint")
    # 3. It must be what was asked for.
    if isinstance(backbone, ViT) and num_heads not in (None, backbone.num_heads):
        raise UserError(f"{model} has {backbone.num_heads} attention heads, not {num_heads}; use that number")
    if num_channels not in (None, backbone.num_channels):
        raise UserError(
            f"{model} reads images of {backbone.num_channels} channels, not {num_channels}; leave out num-channels, "
            "which is for timm:NAME, or train on such images from these weights (selfpatch pretrain --init-from)"
        )
    if normalization is not None:
        check_normalization(*normalization, source="as given", num_channels=backbone.num_channels)
        backbone.mean, backbone.std = normalization
    return backbone.to(device).eval()


def load_vit(model: str | Path, **settings: Any) -> ViT:
    """As `load_backbone`, for what only plain vision transformers can do.

    Raises:
        UserError: also a model of another kind.
    """
    if str(model).startswith(SWIN):
        raise UserError(f"{model} is a Swin; this needs a plain vision transformer")
    backbone = load_backbone(model, **settings)
    if not isinstance(backbone, ViT):
        raise UserError(f"{model} is a {type(backbone).__name__}; this needs a plain vision transformer")
    return backbone


def load_weights(
    backbone: Backbone, model: str | Path, *, num_heads: int | None = None, network: str | None = None
) -> LoadedWeights:
    """Copy into `backbone` every tensor of `model` (as in `load_backbone`).

    Position embeddings and the patch embedding are resampled to the image and patch size of `backbone`.

    Args:
        num_heads: for a checkpoint whose width is unusual; else it is known.
        network: as in `load_backbone`.

    Raises:
        UserError: as `load_backbone`; or another width, depth, number of heads or structure: nothing is copied.
    """
    return initialize(backbone, load_start(model, num_heads=num_heads, network=network), origin=str(model))


def load_start(model: str | Path, *, num_heads: int | None = None, network: str | None = None) -> Backbone:
    """Load a backbone to start from; `num_heads` is for a checkpoint whose width is unusual, else it is known.

    Raises:
        UserError: as `load_backbone`.
    """
    try:
        return load_backbone(model, network=network)
    except UnknownHeadsError:
        return load_backbone(model, num_heads=num_heads, network=network)


def load_training_state(model: str | Path) -> dict[str, Tensor]:
    """Aggregators, heads and centers of an original training state, as `StudentTeacher` names them; else nothing.

    Raises:
        UserError: as `load_backbone`.
    """
    if str(model).startswith("timm:") or find_run_checkpoint(model) is not None:
        return {}
    if FORMAT_KEY in read_metadata(file := _find_file(Path(model))):
        return {}
    state = read_training_state(unwrap(read_checkpoint(file).tensors))
    check_weights(file, state)
    return state


def _find_file(path: Path) -> Path:
    if path.is_file():
        return path
    if not path.exists():
        siblings = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        nearest = difflib.get_close_matches(path.name, siblings, n=3, cutoff=0.4)
        hint = f"Nearest there: {', '.join(nearest)}. " if nearest else ""
        if HUB_NAME.fullmatch(str(path)) and not path.parent.exists():
            hint = (
                f"If it is a name of Hugging Face's: nothing is downloaded by it; fetch {FOLDER_FILES[0]}, config.json "
                f"and, if there is one, preprocessor_config.json from https://huggingface.co/{path} (after logging in, "
                "if it is gated) into one folder, and give that folder. "
            )
        raise UserError(
            f"{path} does not exist. {hint}A model is a run folder, an exported file, an original checkpoint (.pth) or "
            "timm:NAME"
        )
    if (path / RUN_FILE).is_file():
        return path / RUN_FILE
    if (path / "config.yaml").is_file():
        raise UserError(f"the run {path} has saved no backbone yet; wait for its first checkpoint ({path / RUN_FILE})")
    for name in FOLDER_FILES:
        if (path / name).is_file():
            return path / name
    # Hugging Face's cache: models--OWNER--NAME/snapshots/HASH.
    snapshots = [entry for entry in (path / "snapshots").glob("*") if entry.is_dir()]
    if len(snapshots) == 1:
        return _find_file(snapshots[0])
    if (path / "config.json").is_file():
        raise UserError(
            f"the folder {path} has a config.json and no weights beside it; {FOLDER_FILES[0]} or {FOLDER_FILES[1]} is "
            "needed: copy it there, or give the file itself"
        )
    raise UserError(
        f"the folder {path} is no run: it has no {RUN_FILE}, nor a {FOLDER_FILES[0]}; give a run folder, a folder of "
        "Hugging Face, or the file itself"
    )


def _load_described(
    file: Path, description: Description, tensors: dict[str, Tensor], pos_embed_interpolation: str
) -> Backbone:
    name, arguments = description.architecture, description.arguments
    check_depth(file, arguments, tensors)
    with without_values():  # shapes first: no memory is taken for a network that the file cannot fill
        built: Any = create_timm(name, **arguments)
        match = match_tensors(tensors, built)
    has_other_width = arguments.get("num_classes", 0) not in (0, built.num_features)
    if len(match.matched) < len(tensors) or match.missing or has_other_width:
        raise UserError(f"{file} does not hold the {name} that it says it does: {match}. Export the backbone again")
    check_weights(file, tensors)
    model = with_fixed_seed(create_timm, name, arguments)
    model.load_state_dict(tensors)
    set_norm_eps(model, description.norm_eps)
    mean, std = description.normalization
    backbone = wrap_timm(
        model,
        Architecture(name, arguments),
        pos_embed_interpolation=pos_embed_interpolation,
        mean=mean,
        std=std,
        pixels=description.pixels,
    )
    backbone.final_norm_from_aggregator = description.final_norm_from_aggregator
    return backbone


def _load_checkpoint(
    file: Path,
    num_heads: int | None,
    pos_embed_interpolation: str | None,
    network: str | None,
    normalization: Normalization | None,
) -> Backbone:
    converted = convert_checkpoint(
        file, read_checkpoint(file), num_heads=num_heads, network=network, normalization=normalization
    )
    name, arguments, tensors = converted.name, converted.arguments, converted.tensors
    with without_values():  # shapes first, as above
        match = match_tensors(tensors, create_timm(name, **arguments))
    check_match(match, origin=str(file))
    check_weights(file, {name: tensors[name] for name in match.matched})
    model = with_fixed_seed(create_timm, name, arguments)
    load_matching(tensors, model, match)
    set_norm_eps(model, converted.norm_eps)
    mean, std = converted.normalization
    backbone = wrap_timm(
        model,
        Architecture(name, arguments),
        pos_embed_interpolation=pos_embed_interpolation or converted.pos_embed_interpolation,
        mean=mean,
        std=std,
    )
    notes = [str(match), *converted.notes]
    if match.left_out:
        notes.append(f"left out, as no part of the encoder: {', '.join(match.left_out)}")
    backbone.notes = tuple(notes)
    backbone.final_norm_from_aggregator = converted.final_norm_from_aggregator
    return backbone
