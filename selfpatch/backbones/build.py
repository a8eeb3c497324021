"""Backbones by timm's names: the families that there are, and a randomly initialized one from the config."""

import ast
import difflib
from typing import Any

import timm
from timm.layers import HybridEmbed
from timm.models import is_model_in_modules
from timm.models.eva import Eva
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from selfpatch.backbones.backbone import Architecture, Backbone
from selfpatch.backbones.checkpoints.exported import check_arguments
from selfpatch.backbones.stochastic_depth import use_subset_drop_path
from selfpatch.backbones.swin import ANY_SIZE, Swin
from selfpatch.backbones.vit import ViT
from selfpatch.config import IMAGENET_MEAN, IMAGENET_STD, RGB_8, BackboneConfig, PixelFormat, rows_columns
from selfpatch.errors import UserError


def build_backbone(
    config: BackboneConfig,
    image_size: tuple[int, int],
    *,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    pixels: PixelFormat = RGB_8,
) -> Backbone:
    """A randomly initialized backbone for pretraining.

    Args:
        image_size: (rows, columns) in pixels of the crops: unless `config` says otherwise, learned position embeddings
            fit it, and no window is larger than it.
        mean, std: normalization of its images, which exported files and evaluations then use.
        pixels: the format of its images, likewise.

    Raises:
        UserError: a name that timm does not have, or a setting that the family does not have.
    """
    assert config.name is not None  # derived by now
    if config.image_size is not None:
        image_size = rows_columns(config.image_size)
    arguments = {**any_size_arguments(config.name), "img_size": image_size, **parse_model_kwargs(config.model_kwargs)}
    for name in ("patch_size", "embed_dim", "depth", "num_heads", "class_token"):
        if (value := getattr(config, name)) is not None:
            arguments[name] = value
    if pixels.num_channels != 3:
        arguments["in_chans"] = pixels.num_channels
    if is_swin(config.name):
        _refuse_settings_of_vits(config)
        arguments.pop("class_token", None)
    try:
        check_arguments(arguments)
    except UserError as error:
        raise UserError(f"the backbone of this config is beyond all that can be built: {error}") from error
    model: Any = create_timm(config.name, **arguments, drop_path_rate=config.drop_path)
    if config.final_norm is False:
        model.norm = nn.Identity()
    set_norm_eps(model, config.norm_eps)
    backbone = wrap_timm(
        model,
        Architecture(config.name, arguments),
        pos_embed_interpolation=config.pos_embed_interpolation,
        mean=mean,
        std=std,
        pixels=pixels,
    )
    use_subset_drop_path(backbone.blocks)
    return backbone


def parse_model_kwargs(model_kwargs: tuple[str, ...]) -> dict[str, Any]:
    """Arguments of timm's model out of name=value, the value as Python writes it, or a word.

    Raises:
        UserError: not of this form, or an argument that no exported file could name.
    """
    arguments: dict[str, Any] = {}
    for text in model_kwargs:
        name, equals, value = text.partition("=")
        if not equals:
            raise UserError(f"backbone.model-kwargs has {text!r}; arguments are written name=value, e.g. reg_tokens=4")
        try:
            arguments[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            arguments[name] = value
    try:
        check_arguments(arguments)
    except UserError as error:
        raise UserError(f"backbone.model-kwargs: {error}") from error
    return arguments


def write_model_kwargs(arguments: dict[str, Any]) -> tuple[str, ...]:
    """The way back from `parse_model_kwargs`."""
    return tuple(
        f"{name}={value if isinstance(value, str) else repr(value).replace(' ', '')}"
        for name, value in arguments.items()
    )


def set_norm_eps(model: nn.Module, eps: float | None) -> None:
    """Give layer norms their program's epsilon, but for those that timm builds unlike the first; None: as built."""
    built = norm_eps(model)
    for module in model.modules():
        if eps is not None and isinstance(module, nn.LayerNorm) and module.eps == built:
            module.eps = eps


def norm_eps(model: nn.Module) -> float | None:
    """The epsilon of the first layer norm; None: it has none."""
    return next((module.eps for module in model.modules() if isinstance(module, nn.LayerNorm)), None)


def is_swin(name: str) -> bool:
    """True if timm's model of this name is a Swin transformer of the first version."""
    architecture = name.split(".")[0]
    return timm.is_model(architecture) and is_model_in_modules(architecture, ["swin_transformer"])


def any_size_arguments(name: str) -> dict[str, Any]:
    """Arguments for timm by which a model of this name takes any image size, and gives tokens instead of classes."""
    return {"num_classes": 0, "global_pool": "", **(ANY_SIZE if is_swin(name) else {"dynamic_img_size": True})}


def create_timm(name: str, **arguments: Any) -> nn.Module:
    """`timm.create_model` for the families that can be a backbone.

    Raises:
        UserError: an unknown name (the nearest ones are given), another family, or a setting that it lacks.
    """
    architecture = name.split(".")[0]
    if not timm.is_model(architecture):
        known = [*timm.list_models("*vit*"), *timm.list_models("*eva*"), *timm.list_models("swin_*")]
        nearest = difflib.get_close_matches(architecture, known, n=3, cutoff=0.3)
        raise UserError(f"unknown backbone {name!r}; timm has no such model. Nearest: {', '.join(nearest) or 'none'}")
    tag = name.partition(".")[2]
    if tag and name not in timm.list_pretrained(f"{architecture}.*"):
        raise UserError(f"unknown backbone {name!r}; timm has no weights {tag!r} of {architecture}; leave the tag out")
    try:
        model = timm.create_model(name, **arguments)
    except (TypeError, AssertionError) as error:
        reason = str(error).rstrip(".")
        raise UserError(
            f"timm cannot build {name!r} with {arguments}: {reason}. Backbones are vision transformers and Swin "
            "transformers of the first version; leave out the setting that this one does not have, or choose another, "
            "e.g. vit_small_patch16_224"
        ) from error
    if not isinstance(model, VisionTransformer | Eva | SwinTransformer):
        raise UserError(
            f"{name!r} is a {type(model).__name__}; backbones are vision transformers, e.g. vit_small_patch16_224, and "
            "Swin transformers of the first version, e.g. swin_tiny_patch4_window7_224"
        )
    if isinstance(model.patch_embed, HybridEmbed):
        raise UserError(
            f"{name!r} has a convolutional network before its blocks, and patches of it can neither be cut nor masked; "
            "choose a plain vision transformer, e.g. vit_small_patch16_224"
        )
    return model


def wrap_timm(
    model: nn.Module,
    architecture: Architecture,
    *,
    pos_embed_interpolation: str = "antialias",
    mean: tuple[float, ...] = IMAGENET_MEAN,
    std: tuple[float, ...] = IMAGENET_STD,
    pixels: PixelFormat = RGB_8,
) -> Backbone:
    """The backbone of timm's model, which `create_timm` built with `any_size_arguments`."""
    kind = Swin if isinstance(model, SwinTransformer) else ViT
    backbone = kind(model, architecture, mean=mean, std=std)
    backbone.pos_embed_interpolation = pos_embed_interpolation
    backbone.pixels = pixels
    return backbone


def _refuse_settings_of_vits(config: BackboneConfig) -> None:
    values = {"depth": config.depth, "num-heads": config.num_heads, "class-token": config.class_token or None}
    for name, value in values.items():
        if value is not None:
            raise UserError(
                f"backbone.{name} is {value}, but {config.name} is a Swin transformer, which has blocks and attention "
                "heads by stage and no class token; leave it out, or choose a plain vision transformer"
            )
    if config.pos_embed_interpolation != "antialias":
        raise UserError(
            f"backbone.pos-embed-interpolation is {config.pos_embed_interpolation}, but {config.name} is a Swin "
            "transformer, whose positions are relative; set it to antialias"
        )
    if config.image_token == "class_token":
        raise UserError(
            f"backbone.image-token is class_token, but {config.name} is a Swin transformer, which has none; set it to "
            "mean, or take the image token from an aggregator (aggregator.image-token aggregator)"
        )
