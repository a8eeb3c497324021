"""A backbone out of whatever holds one: a run, an exported file, a checkpoint of the original programs, or timm."""

import argparse
import difflib
import json
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from selfpatch.backbones.swin import ANY_SIZE, Swin, create_timm_swin
from selfpatch.backbones.vit import Architecture, ViT, create_timm_vit

# What a run writes its backbone to, in its folder.
RUN_FILE = "backbone.safetensors"
# The metadata of an exported file, besides "architecture", "arguments", "mean" and "std".
FORMAT_KEY, FORMAT_VERSION = "selfpatch_format", "1"
# All that an exported file may hand to timm; with others it could make timm fetch or unpickle something.
ARCHITECTURE_ARGUMENTS = {
    "num_classes", "global_pool", "dynamic_img_size", "img_size", "patch_size", "embed_dim", "depth", "num_heads",
    "class_token", "final_norm",
}  # fmt: skip

# Heads leave no trace in the shapes of tensors. Widths of DINO's family, which has 64 channels a head.
NUM_HEADS = {192: 3, 384: 6, 768: 12, 1024: 16}
# The part of a training checkpoint that is taken, the first there is; the teacher is what DINO and SelfPatch evaluate.
NETWORKS = ("teacher", "student", "state_dict", "model")


class Match(NamedTuple):
    """Names of a backbone's tensors, by whether a file has them in the right shape."""

    matched: list[str]
    missing: list[str]
    unexpected: list[str]
    other_shape: list[str]  # with both shapes

    def __str__(self) -> str:
        total = len(self.matched) + len(self.missing) + len(self.unexpected) + len(self.other_shape)
        text = f"{len(self.matched)} of {total} tensors match"
        for kind in ("missing", "unexpected", "other_shape"):
            if names := getattr(self, kind):
                more = ", ..." if len(names) > 3 else ""
                text += f"; {len(names)} {kind.replace('_', ' of ')}: {', '.join(names[:3])}{more}"
        return text


def load_backbone(
    model: str | Path,
    *,
    device: str | torch.device = "cpu",
    position_resampling: str | None = None,
    num_heads: int | None = None,
) -> ViT | Swin:
    """A backbone in evaluation mode; its `notes` say what should be known of its weights.

    Args:
        model: a run folder, an exported file, a checkpoint (`.pth`, or safetensors) of the original SelfPatch or of
            DINO, `timm:NAME.TAG` for weights that timm may download, or `timm:NAME` for random ones, always the same.
        position_resampling: None is "dino" for checkpoints of the original programs, else "timm".
        num_heads: of a checkpoint of the original programs whose width is unusual; else it is known.

    Raises:
        ValueError: nothing there, not a backbone, damaged, or a checkpoint that fits in less than 90 % of its tensors.
    """
    if str(model).startswith("timm:swin_"):
        return _load_swin(str(model).removeprefix("timm:")).to(device).eval()
    if str(model).startswith("timm:"):
        backbone = _load_timm(str(model).removeprefix("timm:"), position_resampling or "timm")
    else:
        file = _find_file(Path(model))
        metadata = _read_metadata(file)
        if FORMAT_KEY in metadata:
            backbone = _load_exported(file, metadata, position_resampling or "timm")
        else:
            backbone = _load_original(file, num_heads, position_resampling or "dino")
    if num_heads not in (None, backbone.num_heads):
        raise ValueError(f"{model} has {backbone.num_heads} attention heads, not {num_heads}; use that number")
    return backbone.to(device).eval()


def load_vit(
    model: str | Path,
    *,
    device: str | torch.device = "cpu",
    position_resampling: str | None = None,
    num_heads: int | None = None,
) -> ViT:
    """As `load_backbone`, for what only plain vision transformers can do.

    Raises:
        ValueError: also a model of another kind.
    """
    backbone = load_backbone(model, device=device, position_resampling=position_resampling, num_heads=num_heads)
    if not isinstance(backbone, ViT):
        raise ValueError(f"{model} is a {type(backbone).__name__}; this needs a plain vision transformer")
    return backbone


def load_weights(backbone: ViT, model: str | Path, *, num_heads: int | None = None) -> Match:
    """Copy into `backbone` every tensor of `model` (as in `load_backbone`) that fits.

    Position embeddings and the patch embedding are resampled to the image and patch size of `backbone`.

    Raises:
        ValueError: as `load_backbone`; or they fit in less than 90 % of their tensors.
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
    return _copy_tensors(tensors, target, origin=str(model))


def _find_file(path: Path) -> Path:
    if path.is_file():
        return path
    if not path.exists():
        siblings = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        nearest = difflib.get_close_matches(path.name, siblings, n=3, cutoff=0.4)
        hint = f"Nearest there: {', '.join(nearest)}. " if nearest else ""
        raise ValueError(
            f"{path} does not exist. {hint}A model is a run folder, an exported file, an original checkpoint (.pth) or "
            "timm:NAME"
        )
    if (path / RUN_FILE).is_file():
        return path / RUN_FILE
    if (path / "config.yaml").is_file():
        raise ValueError(f"the run {path} has saved no backbone yet; wait for its first checkpoint ({path / RUN_FILE})")
    raise ValueError(f"the folder {path} is no run: it has no {RUN_FILE}; give a run folder or the file itself")


def _load_timm(name: str, position_resampling: str) -> ViT:
    arguments = {"num_classes": 0, "global_pool": "", "dynamic_img_size": True}
    model, settings, notes = _create_timm(name, create_timm_vit, arguments)
    # The image size of a tag may differ from the architecture's own, and position embeddings have to fit.
    arguments = arguments | {"img_size": tuple(model.patch_embed.img_size)}
    architecture = Architecture(name.partition(".")[0], arguments)
    backbone = ViT(model, architecture, position_resampling=position_resampling, **settings)
    backbone.notes = notes
    return backbone


def _load_swin(name: str) -> Swin:
    arguments = {"num_classes": 0, "global_pool": "", **ANY_SIZE}
    model, settings, notes = _create_timm(name, create_timm_swin, arguments)
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
        raise ValueError(
            f"timm has no weights {tag!r} of {architecture}; it has: {', '.join(with_weights) or 'none'}. Without a "
            f"tag (timm:{architecture}) the weights are random"
        )
    try:
        model: Any = create(name, pretrained=True, **arguments)
    except ValueError:
        raise
    except Exception as error:  # each of timm's sources has its own errors for a download that failed
        raise ValueError(
            f"timm could not get the weights {name!r}: {_first_line(error)}. It downloads them unless they are in its "
            "cache already; check the network, or give a file"
        ) from error
    return model, {"mean": model.pretrained_cfg["mean"], "std": model.pretrained_cfg["std"]}, ()


def _with_fixed_seed(create: Callable[..., nn.Module], name: str, arguments: dict[str, Any]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return create(name, **arguments)


def _load_exported(file: Path, metadata: dict[str, str], position_resampling: str) -> ViT:
    if metadata[FORMAT_KEY] != FORMAT_VERSION:
        raise ValueError(
            f"{file} has format {metadata[FORMAT_KEY]!r}, and this version reads {FORMAT_VERSION!r}; use the version "
            f"of selfpatch that wrote it ({metadata.get('selfpatch_version', 'not named')})"
        )
    try:
        name, arguments = metadata["architecture"], json.loads(metadata["arguments"])
        mean, std = (tuple(map(float, json.loads(metadata[key]))) for key in ("mean", "std"))
        arguments = {key: tuple(value) if isinstance(value, list) else value for key, value in arguments.items()}
        if len(mean) != 3 or len(std) != 3 or not arguments.keys() <= ARCHITECTURE_ARGUMENTS:
            raise ValueError(f"mean {mean}, std {std}, arguments {arguments}")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{file} has metadata that no export wrote ({error!r}); export the backbone again") from error
    tensors = _read_tensors(file)
    with torch.device("meta"):  # shapes first: no memory is taken for a network that the file cannot fill
        match = _match(tensors, create_timm_vit(name, **arguments))
    if len(match.matched) < len(tensors) or match.missing:
        raise ValueError(f"{file} does not hold the {name} that it says it does: {match}. Export the backbone again")
    model = create_timm_vit(name, **arguments)
    model.load_state_dict(tensors)
    backbone = ViT(model, Architecture(name, arguments), position_resampling=position_resampling, mean=mean, std=std)
    backbone.norm_is_aggregators = metadata.get("norm_is_aggregators") == "true"
    return backbone


def _load_original(file: Path, num_heads: int | None, position_resampling: str) -> ViT:
    network, tensors = _choose_network(_read_tensors(file))
    notes = [f"{network} of the checkpoint"] if network else []

    # 1. Names: what is in front of the backbone's own, and the final norm, which SelfPatch leaves to its aggregator.
    tensors = {re.sub(r"^((module|backbone)\.)+", "", name): tensor for name, tensor in tensors.items()}
    norm_is_aggregators = False
    for name in ("weight", "bias"):
        if (tensor := tensors.get(f"ca_head.norm.{name}")) is not None and f"norm.{name}" not in tensors:
            tensors[f"norm.{name}"] = tensor
            norm_is_aggregators = True
            notes = [*notes[:1], "the aggregator's norm (ca_head.norm) is its final norm"]
    if "norm.weight" not in tensors:
        notes.append("no final norm in the file: patch tokens come without one")

    # 2. The architecture that these tensors belong to.
    arguments = _infer_arguments(file, tensors, num_heads)
    model = _with_fixed_seed(create_timm_vit, "vit_small_patch16_224", arguments)

    # 3. The tensors themselves.
    match = _copy_tensors(tensors, model, origin=str(file))
    backbone = ViT(model, Architecture("vit_small_patch16_224", arguments), position_resampling=position_resampling)
    backbone.notes = (str(match), *notes)
    backbone.norm_is_aggregators = norm_is_aggregators
    return backbone


def _choose_network(tensors: dict[str, Tensor]) -> tuple[str, dict[str, Tensor]]:
    """The name of the network that is taken, "" where there is only one, and its tensors."""
    for network in NETWORKS:
        if chosen := {
            name.removeprefix(f"{network}."): t for name, t in tensors.items() if name.startswith(f"{network}.")
        }:
            return network, chosen
    return "", tensors


def _infer_arguments(file: Path, tensors: dict[str, Tensor], num_heads: int | None) -> dict[str, Any]:
    """What `timm.create_model` needs to build the network, from the shapes of its tensors."""
    weight, positions = tensors.get("patch_embed.proj.weight"), tensors.get("pos_embed")
    if weight is None or positions is None or weight.ndim != 4 or positions.ndim != 3:
        raise ValueError(
            f"{file} holds no vision transformer of DINO's layout: patch_embed.proj.weight and pos_embed are sought; "
            f"it has {', '.join(list(tensors)[:5]) or 'no tensors'}"
        )
    embed_dim, num_channels, *patch_size = weight.shape
    num_positions = positions.shape[1]
    class_token = math.isqrt(num_positions) ** 2 != num_positions
    side = math.isqrt(num_positions - class_token)
    if num_channels != 3 or side**2 + class_token != num_positions:
        raise ValueError(
            f"{file} has {num_channels} channels and {num_positions} positions; only colour images, and square grids "
            "of positions with one or no class token, can be read"
        )
    num_heads = num_heads or NUM_HEADS.get(embed_dim)
    if num_heads is None:
        raise ValueError(
            f"{file} is {embed_dim} wide, and how many attention heads that makes cannot be seen in a file; say it "
            f"with num-heads (usual are {', '.join(f'{n} for {width}' for width, n in NUM_HEADS.items())})"
        )
    return {
        "num_classes": 0,
        "global_pool": "",
        "dynamic_img_size": True,
        "img_size": (side * patch_size[0], side * patch_size[1]),
        "patch_size": patch_size[0] if patch_size[0] == patch_size[1] else tuple(patch_size),
        "embed_dim": embed_dim,
        "depth": len({name.split(".")[1] for name in tensors if name.startswith("blocks.")}),
        "num_heads": num_heads,
        "class_token": class_token,
        "final_norm": "norm.weight" in tensors,
    }


def _match(tensors: dict[str, Tensor], model: nn.Module) -> Match:
    """Heads and whatever else stands beside the backbone in a file does not count as unexpected."""
    own = model.state_dict()
    parts = {name.split(".")[0] for name in own}
    shared = [name for name in own if name in tensors]
    return Match(
        matched=[name for name in shared if own[name].shape == tensors[name].shape],
        missing=[name for name in own if name not in tensors],
        unexpected=[name for name in tensors if name not in own and name.split(".")[0] in parts],
        other_shape=[
            f"{name} {_shape(tensors[name])} for {_shape(own[name])}"
            for name in shared
            if own[name].shape != tensors[name].shape
        ],
    )


def _copy_tensors(tensors: dict[str, Tensor], model: nn.Module, *, origin: str) -> Match:
    match = _match(tensors, model)
    total = len(match.matched) + len(match.missing) + len(match.unexpected) + len(match.other_shape)
    if 10 * len(match.matched) < 9 * total:
        raise ValueError(
            f"{origin} belongs to another backbone: {match}. At least 90 % must match; choose the backbone that it was "
            "made for"
        )
    model.load_state_dict({name: tensors[name] for name in match.matched}, strict=False)
    return match


def _read_metadata(file: Path) -> dict[str, str]:
    if file.suffix != ".safetensors":
        return {}
    try:
        with safe_open(file, "pt") as content:
            return content.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"{file} is damaged or no safetensors file: {error}; copy or export it again") from error


def _read_tensors(file: Path) -> dict[str, Tensor]:
    """All tensors of a file; those of nested dictionaries under dotted names."""
    if file.suffix == ".safetensors":
        return load_file(file)
    # DINO and SelfPatch keep their arguments beside the weights: a Namespace, which only holds values.
    with file.open("rb") as stream, torch.serialization.safe_globals([argparse.Namespace]):
        try:
            checkpoint = torch.load(stream, map_location="cpu", weights_only=True)
        except Exception as error:  # damaged bytes make the reader raise nearly anything
            raise ValueError(
                f"{file} is no checkpoint that can be read safely: it is damaged, of another kind, or holds more than "
                f"tensors and plain values, which is never executed ({type(error).__name__})"
            ) from error
    return dict(_flatten(checkpoint))


def _flatten(tree: Any, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    if isinstance(tree, Tensor):
        yield prefix.removesuffix("."), tree
    elif isinstance(tree, dict):
        for name, value in tree.items():
            yield from _flatten(value, f"{prefix}{name}.")


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape))


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
