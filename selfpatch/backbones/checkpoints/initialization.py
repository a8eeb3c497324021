"""Weights of one backbone as the start of another: what is copied, resampled, left as it was, or refused."""

import re
from typing import Any, NamedTuple

import torch
from timm.models import adapt_input_conv
from timm.models.eva import Eva
from torch import Tensor, nn

from selfpatch.backbones.backbone import Backbone
from selfpatch.backbones.checkpoints.match import Match, load_matching, match_tensors
from selfpatch.backbones.swin import Swin
from selfpatch.errors import UserError

# A backbone trains these anew where the weights have none, and does without where it has none itself.
OPTIONAL = {
    r"cls_token": "its class token starts anew",
    r"reg_token": "its registers start anew",
    r"norm\.(weight|bias)": "its final norm starts anew",
}

_FIRST_LAYER = "patch_embed.proj.weight"


class LoadedWeights(NamedTuple):
    """The tensors that were copied, the mean and std of images that they were trained with, and notes for the user."""

    match: Match
    mean: tuple[float, ...]
    std: tuple[float, ...]
    notes: tuple[str, ...]

    def __str__(self) -> str:
        return "; ".join(dict.fromkeys([str(self.match), *self.notes]))


def initialize(backbone: Backbone, source: Backbone, *, origin: str) -> LoadedWeights:
    """Copy every tensor of `source` into `backbone`; `source` itself is resampled to its patches and positions.

    Raises:
        UserError: another width, depth, number of heads or structure: nothing is copied.
    """
    _refuse_other(source, backbone, origin)
    notes = list(source.notes)
    source_model, target = source.model, backbone.model

    # 1. Patches and positions. Those of a Swin are relative, within a window.
    if isinstance(source, Swin):
        tensors = source_model.state_dict()
    else:
        notes += _resample(source, backbone)
        tensors = _with_positions_of(source_model, target)
    if source.num_channels != backbone.num_channels:
        tensors[_FIRST_LAYER] = adapt_input_conv(backbone.num_channels, tensors[_FIRST_LAYER])
        notes.append(f"first layer adapted from RGB to {backbone.num_channels} channels by timm's rule")

    # 2. Everything must be there and known, but for what a backbone can start anew or do without.
    match = match_tensors(tensors, target)
    missing = [name for name in match.missing if not _optional(name)]
    unexpected = [name for name in match.unexpected if not _optional(name)]
    if missing or unexpected or match.mismatched:
        found = match._replace(missing=missing, unexpected=unexpected)
        if isinstance(source, Swin):
            _refuse_other_windows(found, source, backbone, origin)
        raise UserError(
            f"{origin} has another structure than this backbone ({source.architecture.name} and "
            f"{backbone.architecture.name}): {found}. Choose the backbone that the weights were made for "
            f"(--backbone.name {source.architecture.name})"
        )
    notes += dict.fromkeys(reason for name in match.missing if (reason := _optional(name)))
    if dropped := sorted({name.split(".")[0] for name in match.unexpected}):
        notes.append(f"this backbone has no {', '.join(dropped)}: left out")
    ours, theirs = _activation(target), _activation(source_model)
    if ours != theirs:
        notes.append(f"trained with {theirs}, and this backbone has {ours}")
    load_matching(tensors, target, match)
    return LoadedWeights(match, source.mean, source.std, tuple(notes))


def _resample(source: Backbone, target: Backbone) -> list[str]:
    """Bring patches and positions of `source` to those of `target`; returns notes on it."""
    old_grid, new_grid = (tuple(backbone.model.patch_embed.grid_size) for backbone in (source, target))
    notes = []
    if source.patch_size != target.patch_size:
        notes.append(f"patches resampled from {_by(source.patch_size)} to {_by(target.patch_size)} pixels")
    if getattr(source.model, "pos_embed", None) is not None and old_grid != new_grid:
        notes.append(f"positions resampled from {_by(old_grid)} to {_by(new_grid)}")
    source.model.set_input_size(img_size=target.image_size, patch_size=target.patch_size)
    return notes


def _refuse_other_windows(match: Match, source: Backbone, target: Backbone, origin: str) -> None:
    if any("relative_position_bias_table" in text for text in match.mismatched):
        raise UserError(
            f"{origin} has attention windows of another size than the backbone to start, whose windows are no larger "
            f"than the last stages of {_by(target.image_size)} pixels: {match}. Set --backbone.image-size "
            f"{source.image_size[0]}, or --backbone.name None to take over the network of the weights"
        )


def _refuse_other(source: Backbone, target: Backbone, origin: str) -> None:
    if source.num_channels not in (3, target.num_channels):
        raise UserError(
            f"{origin} is made for images of {source.num_channels} channels, and these have {target.num_channels}: "
            "only a first layer for RGB can be adapted; start from weights for RGB, or for such images"
        )
    if isinstance(source, Swin) != isinstance(target, Swin):
        kinds = {True: "Swin transformer", False: "plain vision transformer"}
        raise UserError(
            f"{origin} is a {kinds[isinstance(source, Swin)]}, and the backbone to start a "
            f"{kinds[isinstance(target, Swin)]}; set --backbone.name {source.architecture.name}, or start from weights "
            "that fit"
        )
    for what, theirs, ours, option in (
        ("width (embed_dim)", source.embed_dim, target.embed_dim, "--backbone.embed-dim"),
        ("depth (blocks)", len(source.blocks), len(target.blocks), "--backbone.depth"),
        ("number of attention heads", source.num_heads, target.num_heads, "--backbone.num-heads"),
    ):
        if theirs != ours:
            raise UserError(
                f"{origin} has a {what} of {theirs}, and the backbone to start has {ours}; set {option} {theirs} (or "
                "--backbone.name to a model of that size), or start from weights that fit"
            )
    if isinstance(source.model, Eva) != isinstance(target.model, Eva):
        kinds = {True: "rotary positions (timm's Eva)", False: "no rotary positions"}
        theirs, ours = (kinds[isinstance(m, Eva)] for m in (source.model, target.model))
        raise UserError(
            f"{origin} has {theirs}, and the backbone to start has {ours}; set --backbone.name "
            f"{source.architecture.name}, or start from weights that fit"
        )


def _with_positions_of(source: Any, target: Any) -> dict[str, Tensor]:
    """The tensors of `source`, with positions for the tokens besides patches that `target` has."""
    tensors = source.state_dict()
    if getattr(source, "pos_embed", None) is None or getattr(target, "pos_embed", None) is None:
        return tensors
    num_patches = target.patch_embed.num_patches
    prefix, patches = tensors["pos_embed"].tensor_split([-num_patches], dim=1)
    own = target.pos_embed.detach().cpu()[:, :-num_patches]
    if prefix.shape[1] == own.shape[1] and source.num_prefix_tokens == target.num_prefix_tokens:
        return tensors
    # 1. What positions add to the source's tokens becomes part of these.
    start = 0
    for name in ("cls_token", "reg_token"):
        if name in tensors and start < prefix.shape[1]:
            stop = start + tensors[name].shape[1]
            tensors[name] = tensors[name] + prefix[:, start:stop]
            start = stop
    # 2. So nothing is left to add, but to tokens that the source lacks: those keep what they had.
    new, start = own.clone(), 0
    for name, token in (("cls_token", target.cls_token), ("reg_token", target.reg_token)):
        if token is not None and start < own.shape[1]:
            stop = start + token.shape[1]
            if name in tensors:
                new[:, start:stop] = 0
            start = stop
    return tensors | {"pos_embed": torch.cat([new, patches], dim=1)}


def _optional(name: str) -> str | None:
    return next((reason for pattern, reason in OPTIONAL.items() if re.fullmatch(pattern, name)), None)


def _activation(model: nn.Module) -> str:
    return next((type(m.act).__name__ for m in model.modules() if isinstance(getattr(m, "act", None), nn.Module)), "?")


def _by(sides: tuple[int, int]) -> str:
    return f"{sides[0]} x {sides[1]}"
