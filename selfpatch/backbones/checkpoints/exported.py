"""The file that a run or `selfpatch export` writes: its metadata name the architecture, mean and std."""

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

from selfpatch.backbones.checkpoints.sidecar import Normalization, check_normalization
from selfpatch.config import RGB_8, PixelFormat
from selfpatch.config.pixel_format import MAX_CHANNELS
from selfpatch.errors import UserError

# The metadata of an exported file, besides "architecture", "arguments", "mean" and "std".
FORMAT_KEY, FORMAT_VERSION = "selfpatch_format", "1"
# Bounds of whole numbers; far beyond any backbone, and small enough to be built, or refused, quickly.
WHOLE = {
    "num_classes": (0, 65_536),  # of its tokens' width where position was removed
    "in_chans": (1, MAX_CHANNELS),
    "img_size": (1, 8192),
    "patch_size": (1, 1024),
    "embed_dim": (1, 65_536),
    "depth": (1, 1024),
    "reg_tokens": (0, 1024),
    "num_reg_tokens": (0, 1024),
    "swiglu_align_to": (0, 1024),
}
MAX_PATCHES = 1_100_000
REAL = {"mlp_ratio": (1e-3, 64.0), "init_values": (0.0, 10.0)}
SWITCHES = {
    "dynamic_img_size", "class_token", "final_norm", "no_embed_class", "pre_norm", "qkv_bias", "qk_norm", "proj_bias",
    "scale_attn_norm", "scale_mlp_norm", "swiglu_mlp", "use_fc_norm", "use_post_transformer_norm",
    "strict_img_size",
}  # fmt: skip
SEQUENCES = {"num_heads": (1, 1024), "depths": (1, 1024), "window_size": (1, 1024)}
WORDS = {"global_pool": ("", "avg", "token", "map"), "act_layer": ("gelu", "gelu_tanh", "quick_gelu", "silu", "relu")}
# All that a file may hand to timm; with others it could make timm fetch or unpickle something.
ARCHITECTURE_ARGUMENTS = {*WHOLE, *REAL, *SEQUENCES, *SWITCHES, *WORDS}


class Description(NamedTuple):
    """Metadata of an exported file."""

    architecture: str
    arguments: dict[str, Any]
    normalization: Normalization
    final_norm_from_aggregator: bool
    norm_eps: float | None
    pixels: PixelFormat


def read_description(file: Path, metadata: dict[str, str]) -> Description:
    """
    Raises:
        UserError: another format, or values that no export writes.
    """
    if metadata[FORMAT_KEY] != FORMAT_VERSION:
        raise UserError(
            f"{file} has format {metadata[FORMAT_KEY]!r}, and this version reads {FORMAT_VERSION!r}; use the version "
            f"of selfpatch that wrote it ({metadata.get('selfpatch_version', 'not named')})"
        )
    try:
        arguments = json.loads(metadata["arguments"])
        arguments = {key: tuple(value) if isinstance(value, list) else value for key, value in arguments.items()}
        check_arguments(arguments)
        mean, std = (json.loads(metadata[key]) for key in ("mean", "std"))
        norm_eps = json.loads(metadata.get("norm_eps", "null"))
        if norm_eps is not None and not (isinstance(norm_eps, float) and 0 < norm_eps < 1):
            raise UserError(f"norm_eps is {norm_eps!r}")
        num_channels = arguments.get("in_chans", 3)
        return Description(
            metadata["architecture"],
            arguments,
            check_normalization(mean, std, source="metadata", num_channels=num_channels),
            metadata.get("final_norm_from_aggregator") == "true",
            norm_eps,
            read_pixel_format(json.loads(metadata.get("pixels", "{}")), num_channels),
        )
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else repr(error)[:300]
        raise UserError(f"{file} has metadata that no export wrote ({reason}); export the backbone again") from error


def read_pixel_format(values: Any, num_channels: int) -> PixelFormat:
    """How images are read, out of the metadata of an exported file; 8-bit RGB if nothing is there.

    Raises:
        UserError: values that no export writes.
    """
    names = {"dtype", "value_range", "pages", "shown_channels"}
    if not isinstance(values, dict) or not values.keys() <= names:
        raise UserError(f"pixels are {str(values)[:100]}")
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    pixels = RGB_8._replace(num_channels=num_channels, **values)
    low, high = (0.0, 1.0) if pixels.value_range is None else pixels.value_range
    shown = () if pixels.shown_channels is None else pixels.shown_channels
    if not (
        pixels.dtype in ("uint8", "float32")
        and pixels.pages in ("auto", "first", "channels")
        and all(type(value) in (int, float) and math.isfinite(value) for value in (low, high))
        and low < high
        and len(shown) in (0, 3)
        and all(type(channel) is int and 0 <= channel < num_channels for channel in shown)
    ):
        raise UserError(f"pixels are {str(values)[:100]}")
    return pixels


def check_arguments(arguments: dict[str, Any]) -> None:
    """
    Raises:
        UserError: an argument that no export writes, of the wrong kind, or beyond all backbones.
    """
    for name, value in arguments.items():
        if name in WHOLE:
            low, high = WHOLE[name]
            sides = value if isinstance(value, tuple) and len(value) == 2 else (value,)
            is_fine = all(type(side) is int and low <= side <= high for side in sides)
            is_fine = is_fine and (len(sides) == 1 or name in ("img_size", "patch_size"))
            allowed = f"a whole number from {low} to {high}"
        elif name in SEQUENCES:
            low, high = SEQUENCES[name]
            numbers = value if isinstance(value, tuple) else (value,)
            is_fine = len(numbers) <= 8 and all(type(n) is int and low <= n <= high for n in numbers)
            allowed = f"whole numbers from {low} to {high}, by stage or by side"
        elif name in REAL:
            low, high = REAL[name]
            is_fine = value is None or (type(value) in (int, float) and math.isfinite(value) and low <= value <= high)
            allowed = f"a number from {low:g} to {high:g}"
        elif name in SWITCHES:
            is_fine, allowed = type(value) is bool, "true or false"
        elif name in WORDS:
            is_fine, allowed = value in WORDS[name], " or ".join(map(repr, WORDS[name]))
        else:
            is_fine, allowed = False, f"nothing: known are {', '.join(sorted(ARCHITECTURE_ARGUMENTS))}"
        if not is_fine:
            raise UserError(f"argument {name} is {str(value)[:100]}, allowed is {allowed}")
    images, patches = (_sides(arguments.get(name, default)) for name, default in (("img_size", 224), ("patch_size", 8)))
    if math.prod(images) > MAX_PATCHES * math.prod(patches):
        raise UserError(f"images of {images} in patches of {patches} pixels are more than {MAX_PATCHES:,} patches")


def _sides(value: Any) -> tuple[int, ...]:
    return value if isinstance(value, tuple) else (value, value)
