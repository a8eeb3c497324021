"""A backbone out of whatever holds one: a run, an exported file, a checkpoint of the original programs, or timm."""

import difflib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from selfpatch.backbones.backbone import Architecture, Backbone
from selfpatch.backbones.build import any_size_arguments, create_timm, wrap_timm
from selfpatch.backbones.checkpoints.formats import convert_original
from selfpatch.backbones.checkpoints.match import Match, check_match, load_matching, match_tensors
from selfpatch.backbones.checkpoints.weights_io import check_weights, read_metadata, read_tensors
from selfpatch.backbones.swin import Swin
from selfpatch.backbones.vit import ViT
from selfpatch.errors import UserError

# How the names of models begin that are no plain vision transformers.
SWIN = "timm:swin_"
# What a run writes its backbone to, in its folder.
RUN_FILE = "backbone.safetensors"
# The metadata of an exported file, besides "architecture", "arguments", "mean" and "std".
FORMAT_KEY, FORMAT_VERSION = "selfpatch_format", "1"
# All that an exported file may hand to timm; with others it could make timm fetch or unpickle something.
ARCHITECTURE_ARGUMENTS = {
    "num_classes", "global_pool", "dynamic_img_size", "img_size", "patch_size", "embed_dim", "depth", "num_heads",
    "class_token", "final_norm", "reg_tokens", "depths", "window_size", "strict_img_size",
}  # fmt: skip


def load_backbone(
    model: str | Path,
    *,
    device: str | torch.device = "cpu",
    pos_embed_interpolation: str | None = None,
    num_heads: int | None = None,
) -> Backbone:
    """A backbone in evaluation mode; its `notes` say what should be known of its weights.

    Args:
        model: a run folder, an exported file, a checkpoint (`.pth`, or safetensors) of the original SelfPatch, DINO,
            iBOT, MoCo-v3 or DINOv2, `timm:NAME.TAG` for weights that timm may download, or `timm:NAME` for random
            ones, always the same.
        pos_embed_interpolation: None is what the original program does for its checkpoints, else "timm".
        num_heads: of a checkpoint of the original programs whose width is unusual; else it is known.

    Raises:
        UserError: nothing there, not a backbone, damaged, not finite, or a checkpoint that fits in less than 90 % of
            its tensors.
    """
    if str(model).startswith(SWIN):
        if (num_heads, pos_embed_interpolation) != (None, None):
            raise UserError(
                f"{model} has attention heads by stage and no position embeddings to resample; leave out num-heads and "
                "pos-embed-interpolation, which are for plain vision transformers"
            )
        return _load_swin(str(model).removeprefix("timm:")).to(device).eval()
    if str(model).startswith("timm:"):
        backbone = _load_timm(str(model).removeprefix("timm:"), pos_embed_interpolation or "timm")
    else:
        file = _find_file(Path(model))
        metadata = read_metadata(file)
        if FORMAT_KEY in metadata:
            backbone = _load_exported(file, metadata, pos_embed_interpolation or "timm")
        else:
            backbone = _load_original(file, num_heads, pos_embed_interpolation)
    if num_heads not in (None, backbone.num_heads):
        raise UserError(f"{model} has {backbone.num_heads} attention heads, not {num_heads}; use that number")
    return backbone.to(device).eval()


def load_vit(
    model: str | Path,
    *,
    device: str | torch.device = "cpu",
    pos_embed_interpolation: str | None = None,
    num_heads: int | None = None,
) -> ViT:
    """As `load_backbone`, for what only plain vision transformers can do.

    Raises:
        UserError: also a model of another kind.
    """
    if str(model).startswith(SWIN):
        raise UserError(f"{model} is a Swin; this needs a plain vision transformer")
    backbone = load_backbone(model, device=device, pos_embed_interpolation=pos_embed_interpolation, num_heads=num_heads)
    if not isinstance(backbone, ViT):
        raise UserError(f"{model} is a {type(backbone).__name__}; this needs a plain vision transformer")
    return backbone


def load_weights(backbone: ViT, model: str | Path, *, num_heads: int | None = None) -> Match:
    """Copy into `backbone` every tensor of `model` (as in `load_backbone`) that fits.

    Position embeddings and the patch embedding are resampled to the image and patch size of `backbone`.

    Raises:
        UserError: as `load_backbone`; or they fit in less than 90 % of their tensors.
    """
    source: Any = load_vit(model, num_heads=num_heads).model
    target: Any = backbone.model
    source.set_input_size(img_size=target.patch_embed.img_size, patch_size=backbone.patch_size)
    tensors = source.state_dict()
    if (
        source.pos_embed is not None
        and target.pos_embed is not None
        and source.num_prefix_tokens != target.num_prefix_tokens
    ):
        # Positions of a class token or registers come first; where the two have other ones, those of patches are taken.
        num_patches = target.patch_embed.num_patches
        own = target.pos_embed.detach().cpu()[:, :-num_patches]
        tensors["pos_embed"] = torch.cat([own, tensors["pos_embed"][:, -num_patches:]], dim=1)
    return load_matching(tensors, target, origin=str(model))


def _find_file(path: Path) -> Path:
    if path.is_file():
        return path
    if not path.exists():
        siblings = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        nearest = difflib.get_close_matches(path.name, siblings, n=3, cutoff=0.4)
        hint = f"Nearest there: {', '.join(nearest)}. " if nearest else ""
        raise UserError(
            f"{path} does not exist. {hint}A model is a run folder, an exported file, an original checkpoint (.pth) or "
            "timm:NAME"
        )
    if (path / RUN_FILE).is_file():
        return path / RUN_FILE
    if (path / "config.yaml").is_file():
        raise UserError(f"the run {path} has saved no backbone yet; wait for its first checkpoint ({path / RUN_FILE})")
    raise UserError(f"the folder {path} is no run: it has no {RUN_FILE}; give a run folder or the file itself")


def _load_timm(name: str, pos_embed_interpolation: str) -> ViT:
    arguments = any_size_arguments(name)
    model, settings, notes = _create_timm(name, create_timm, arguments)
    # The image size of a tag may differ from the architecture's own, and position embeddings have to fit.
    arguments = arguments | {"img_size": tuple(model.patch_embed.img_size)}
    architecture = Architecture(name.partition(".")[0], arguments)
    backbone = ViT(model, architecture, pos_embed_interpolation=pos_embed_interpolation, **settings)
    backbone.notes = notes
    return backbone


def _load_swin(name: str) -> Swin:
    arguments = any_size_arguments(name)
    model, settings, notes = _create_timm(name, create_timm, arguments)
    backbone = Swin(model, Architecture(name.partition(".")[0], arguments), **settings)
    backbone.notes = notes
    return backbone


def _create_timm(
    name: str, create: Callable[..., nn.Module], arguments: dict[str, Any]
) -> tuple[Any, dict[str, Any], tuple[str, ...]]:
    """timm's model with the weights that the name asks for, random ones without a tag; its mean and std; notes."""
    architecture, _, tag = name.partition(".")
    with_weights = timm.list_pretrained(f"{architecture}.*")
    if not tag:
        known = f"; with weights: {', '.join(f'timm:{name}' for name in with_weights)}" if with_weights else ""
        note = f"random initialisation (timm:{name} names no weights{known})"
        return _with_fixed_seed(create, name, arguments), {}, (note,)
    if timm.is_model(architecture) and name not in with_weights:
        raise UserError(
            f"timm has no weights {tag!r} of {architecture}; it has: {', '.join(with_weights) or 'none'}. Without a "
            f"tag (timm:{architecture}) the weights are random"
        )
    try:
        model: Any = create(name, pretrained=True, **arguments)
    except ValueError:
        raise
    except Exception as error:  # each of timm's sources has its own errors for a download that failed
        raise UserError(
            f"timm could not get the weights {name!r}: {_first_line(error)}. It downloads them unless they are in its "
            "cache already; check the network, or give a file"
        ) from error
    return model, {"mean": model.pretrained_cfg["mean"], "std": model.pretrained_cfg["std"]}, ()


def _with_fixed_seed(create: Callable[..., nn.Module], name: str, arguments: dict[str, Any]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return create(name, **arguments)


def _load_exported(file: Path, metadata: dict[str, str], pos_embed_interpolation: str) -> Backbone:
    if metadata[FORMAT_KEY] != FORMAT_VERSION:
        raise UserError(
            f"{file} has format {metadata[FORMAT_KEY]!r}, and this version reads {FORMAT_VERSION!r}; use the version "
            f"of selfpatch that wrote it ({metadata.get('selfpatch_version', 'not named')})"
        )
    try:
        name, arguments = metadata["architecture"], json.loads(metadata["arguments"])
        mean, std = (tuple(map(float, json.loads(metadata[key]))) for key in ("mean", "std"))
        arguments = {key: tuple(value) if isinstance(value, list) else value for key, value in arguments.items()}
        if len(mean) != 3 or len(std) != 3 or not arguments.keys() <= ARCHITECTURE_ARGUMENTS:
            raise UserError(f"mean {mean}, std {std}, arguments {arguments}")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{file} has metadata that no export wrote ({error!r}); export the backbone again") from error
    tensors = read_tensors(file)
    with torch.device("meta"):  # shapes first: no memory is taken for a network that the file cannot fill
        match = match_tensors(tensors, create_timm(name, **arguments))
    if len(match.matched) < len(tensors) or match.missing:
        raise UserError(f"{file} does not hold the {name} that it says it does: {match}. Export the backbone again")
    check_weights(file, tensors)
    model = create_timm(name, **arguments)
    model.load_state_dict(tensors)
    backbone = wrap_timm(
        model, Architecture(name, arguments), pos_embed_interpolation=pos_embed_interpolation, mean=mean, std=std
    )
    backbone.final_norm_from_aggregator = metadata.get("final_norm_from_aggregator") == "true"
    return backbone


def _load_original(file: Path, num_heads: int | None, pos_embed_interpolation: str | None) -> ViT:
    original = convert_original(file, read_tensors(file), num_heads)
    name, arguments, tensors = original.name, original.arguments, original.tensors
    with torch.device("meta"):  # shapes first, as above
        match = match_tensors(tensors, create_timm(name, **arguments))
    check_match(match, origin=str(file))
    check_weights(file, {name: tensors[name] for name in match.matched})
    model = _with_fixed_seed(create_timm, name, arguments)
    load_matching(tensors, model, origin=str(file))
    backbone = ViT(
        model,
        Architecture(name, arguments),
        pos_embed_interpolation=pos_embed_interpolation or original.pos_embed_interpolation,
    )
    notes = [str(match), *original.notes]
    if beside := sorted({name.split(".")[0] for name in tensors} - {name.split(".")[0] for name in model.state_dict()}):
        notes.append(f"left out, as no part of the encoder: {', '.join(beside)}")
    backbone.notes = tuple(notes)
    backbone.final_norm_from_aggregator = original.final_norm_from_aggregator
    return backbone


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
