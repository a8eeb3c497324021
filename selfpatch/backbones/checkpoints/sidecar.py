"""Hints from outside the tensors: config.json and preprocessor_config.json beside a file, and names that timm knows.

Weights do not show how their images were normalized, nor the activation, nor which norm comes first in a block.
"""

import json
import math
import re
from pathlib import Path
from typing import Any, NamedTuple

import timm

from selfpatch.errors import UserError

MAX_JSON_BYTES = 1_000_000


class Normalization(NamedTuple):
    """Mean and standard deviation of images with values in [0, 1], by channel."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


class Hints(NamedTuple):
    """Whatever is known of a checkpoint beside its tensors.

    Args:
        config: of a Hugging Face model; that of its vision part, if it has two.
        architecture, tag: timm's name of the model and of its weights.
        is_certain: whether `architecture` was written there by timm, and not found in the name of a file.
        normalization: with `normalization_source`, where it was found; `is_stated`: not only by a name in a path.
    """

    config: dict[str, Any] = {}  # noqa: RUF012
    architecture: str | None = None
    tag: str | None = None
    model_args: dict[str, Any] = {}  # noqa: RUF012
    is_certain: bool = False
    normalization: Normalization | None = None
    normalization_source: str = ""
    is_stated: bool = False


def read_hints(file: Path, values: dict[str, Any]) -> Hints:
    """
    Args:
        values: what a checkpoint holds at its top besides tensors, such as timm's `arch` and `args`.

    Raises:
        UserError: JSON beside the file that cannot be read, or names mean and std that cannot be.
    """
    config = read_json(file.parent / "config.json")
    config = config if "architecture" in config or "model_type" in config or "vision_config" in config else {}
    hints = _timm_name(file, values, config)

    # 1. Normalization: a preprocessor's, then timm's configuration, then the arguments that timm trained with.
    preprocessor = read_json(file.parent / "preprocessor_config.json")
    pretrained_cfg = config.get("pretrained_cfg")
    arguments = values.get("args")
    if not isinstance(arguments, dict) or not all(
        isinstance(arguments.get(key), list | tuple) for key in ("mean", "std")
    ):
        arguments = {}  # another program's, whose `mean` may be anything
    for source, where, mean, std in (
        ("preprocessor_config.json", preprocessor, "image_mean", "image_std"),
        ("config.json", pretrained_cfg if isinstance(pretrained_cfg, dict) else {}, "mean", "std"),
        ("the checkpoint's args", arguments, "mean", "std"),
    ):
        if where.get(mean) is not None and where.get(std) is not None:
            normalization = check_normalization(where[mean], where[std], source=f"{source} of {file}")
            return hints._replace(normalization=normalization, normalization_source=source, is_stated=True)

    # 2. By timm's name.
    if hints.architecture is not None:
        known = normalization_by_name(hints)
        if known is not None:
            source = f"timm's {hints.architecture}{f'.{hints.tag}' if hints.tag else ''}"
            return hints._replace(normalization=known, normalization_source=source, is_stated=hints.is_certain)
    return hints


def normalization_by_name(hints: Hints) -> Normalization | None:
    """Of timm's weights of that name; without a tag, if all weights of the architecture agree."""
    names = timm.list_pretrained(f"{hints.architecture}.*")
    if hints.tag is not None:
        names = [f"{hints.architecture}.{hints.tag}"]
    elif hints.is_certain:  # timm's own training normalizes by the architecture's first weights
        names = names[:1] and [str(hints.architecture)]
    configs = [timm.get_pretrained_cfg(name) for name in names]
    found = {Normalization(tuple(config.mean), tuple(config.std)) for config in configs if config is not None}
    return found.pop() if len(found) == 1 else None


def check_normalization(mean: Any, std: Any, *, source: str, num_channels: int = 3) -> Normalization:
    """
    Raises:
        UserError: not as many finite numbers each as there are channels, for values in [0, 1], std above 0.
    """
    count = "three" if num_channels == 3 else str(num_channels)
    try:
        means, stds = (tuple(float(number) for number in numbers) for numbers in (mean, std))
    except (TypeError, ValueError, OverflowError) as error:
        raise UserError(f"mean {mean!r} and std {std!r} ({source}) are no numbers: {count} each are needed") from error
    is_usual = all(-1 <= m <= 1 for m in means) and all(0 < s <= 1 for s in stds)
    if {len(means), len(stds)} != {num_channels} or not all(map(math.isfinite, means + stds)) or not is_usual:
        raise UserError(
            f"mean {means} and std {stds} ({source}) cannot normalize images: {count} numbers each are needed, mean "
            "from -1 to 1 and std above 0 up to 1, for values in [0, 1]; divide those for values up to 255 by 255"
        )
    return Normalization(means, stds)


def read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file; {} if there is no such file, or something else in it.

    Raises:
        UserError: no JSON, nested too deeply, or implausibly large.
    """
    if not file.is_file():
        return {}
    if file.stat().st_size > MAX_JSON_BYTES:
        raise UserError(f"{file} has more than {MAX_JSON_BYTES:,} bytes and describes no model; move it away")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else error
        raise UserError(
            f"{file} cannot be read as JSON ({reason}); mend it, or move it away from the weights"
        ) from error
    return content if isinstance(content, dict) else {}


def _timm_name(file: Path, values: dict[str, Any], config: dict[str, Any]) -> Hints:
    vision = config.get("vision_config")
    hints = Hints(config=vision if isinstance(vision, dict) else config)
    # 1. timm's config.json, or the `arch` of timm's training checkpoint.
    pretrained_cfg = config.get("pretrained_cfg")
    tag = pretrained_cfg.get("tag") if isinstance(pretrained_cfg, dict) else None
    for architecture in (config.get("architecture"), values.get("arch")):
        name, _, own_tag = architecture.partition(".") if isinstance(architecture, str) else ("", "", "")
        if timm.is_model(name):
            found_tag = next((t for t in (own_tag, tag) if _is_tag(name, t)), None)
            model_args = config.get("model_args")
            return hints._replace(
                architecture=name,
                tag=found_tag,
                model_args=model_args if isinstance(model_args, dict) else {},
                is_certain=True,
            )
    # 2. The name of the file or its folder, or in Hugging Face's cache (models--timm--NAME/snapshots/HASH).
    folder, *above = (parent.name for parent in file.absolute().parents[:3])
    for name in (file.stem, folder, *(name for name in above if name.startswith("models--"))):
        if found := find_timm_name(name):
            return hints._replace(architecture=found[0], tag=found[1])
    return hints


def find_timm_name(text: str) -> tuple[str, str | None] | None:
    """The longest architecture of timm that a name contains, and the tag of its weights, if that follows."""
    best = ""
    for architecture in timm.list_models():
        if len(architecture) > len(best) and re.search(rf"(?<![a-z0-9]){re.escape(architecture)}(?![a-z0-9])", text):
            best = architecture
    if not best:
        return None
    rest = text.partition(best)[2]
    tags = [name.partition(".")[2] for name in timm.list_pretrained(f"{best}.*")]
    found = [tag for tag in tags if re.match(rf"[._-]{re.escape(tag)}(?![a-z0-9_])", rest)]
    return best, max(found, key=len, default=None)


def _is_tag(architecture: str, tag: Any) -> bool:
    return isinstance(tag, str) and f"{architecture}.{tag}" in timm.list_pretrained(f"{architecture}.*")
