"""Backbones by the names of timm, with its weights or random ones, for images of any number of channels."""

from collections.abc import Callable
from typing import Any

import timm
import torch
from torch import nn

from selfpatch.backbones.backbone import Architecture, Backbone
from selfpatch.backbones.build import any_size_arguments, create_timm
from selfpatch.backbones.swin import Swin
from selfpatch.backbones.vit import ViT
from selfpatch.config import PixelFormat
from selfpatch.errors import UserError


def load_timm(name: str, pos_embed_interpolation: str, num_channels: int | None) -> ViT:
    arguments = any_size_arguments(name) | _input_arguments(num_channels)
    model, settings, notes = _create_timm(name, create_timm, arguments)
    # The image size of a tag may differ from the architecture's own, and position embeddings have to fit.
    arguments = arguments | {"img_size": tuple(model.patch_embed.img_size)}
    architecture = Architecture(name.partition(".")[0], arguments)
    backbone = ViT(model, architecture, pos_embed_interpolation=pos_embed_interpolation, **settings)
    _set_channels(backbone, num_channels)
    backbone.notes = notes
    return backbone


def load_swin(name: str, num_channels: int | None) -> Swin:
    arguments = any_size_arguments(name) | _input_arguments(num_channels)
    model, settings, notes = _create_timm(name, create_timm, arguments)
    backbone = Swin(model, Architecture(name.partition(".")[0], arguments), **settings)
    _set_channels(backbone, num_channels)
    backbone.notes = notes
    return backbone


def _input_arguments(num_channels: int | None) -> dict[str, Any]:
    return {} if num_channels in (None, 3) else {"in_chans": num_channels}


def _set_channels(backbone: Backbone, num_channels: int | None) -> None:
    """Read images of so many channels at full depth; mean and std are RGB's in turn, as the first layer's weights."""
    if num_channels is not None:
        backbone.pixels = PixelFormat(num_channels, "float32")
        backbone.mean, backbone.std = (
            tuple(values[channel % len(values)] for channel in range(num_channels))
            for values in (backbone.mean, backbone.std)
        )


def _create_timm(
    name: str, create: Callable[..., nn.Module], arguments: dict[str, Any]
) -> tuple[Any, dict[str, Any], tuple[str, ...]]:
    """timm's model with the weights that the name asks for, random ones without a tag; its mean and std; notes."""
    architecture, _, tag = name.partition(".")
    with_weights = timm.list_pretrained(f"{architecture}.*")
    if not tag:
        known = f"; with weights: {', '.join(f'timm:{name}' for name in with_weights)}" if with_weights else ""
        note = f"random initialisation (timm:{name} names no weights{known})"
        return with_fixed_seed(create, name, arguments), {}, (note,)
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
            f"cache already. Check the network; or {_how_to_fetch(name)}"
        ) from error
    return model, {"mean": model.pretrained_cfg["mean"], "std": model.pretrained_cfg["std"]}, ()


def _how_to_fetch(name: str) -> str:
    """Where the weights of a name of timm's are, and how their file is given instead of the name."""
    config = timm.get_pretrained_cfg(name)
    if config is not None and config.hf_hub_id:
        file = config.hf_hub_filename or "model.safetensors"
        repository = f"{config.hf_hub_id}{name}" if config.hf_hub_id.endswith("/") else config.hf_hub_id
        return (
            f"fetch {file} from https://huggingface.co/{repository} elsewhere "
            "(after logging in there, if the weights are gated), put it into a folder with the name "
            f"{name} and give that folder as the model"
        )
    url = config.url if config is not None else None
    return f"fetch {url or 'their file'} elsewhere and give the file as the model"


def with_fixed_seed(create: Callable[..., nn.Module], name: str, arguments: dict[str, Any]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return create(name, **arguments)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
