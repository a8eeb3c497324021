"""Matches a file's tensors against a backbone; anything that would change its features is an error."""

import re
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from selfpatch.errors import UserError

# Beside the encoder in a file, and changing its features though no part of a model here has their name.
MATTERS = re.compile(
    r"(dist_token|rel_pos_bias|relative_position|norm_pre|ln_pre|embed_norm|norm_embed|reg_token|register_tokens|"
    r"storage_tokens|cls_norm|prompt|adapter|lora|temporal|time_embed|pos_embed|cls_token|rope|norm)(?![a-z]).*"
)


class Match(NamedTuple):
    """Names of a backbone's tensors, by whether a file has them in the right shape.

    Args:
        left_out: parts of the file that are none of the encoder: heads, decoders, mask tokens.
    """

    matched: list[str]
    missing: list[str]
    unexpected: list[str]
    mismatched: list[str]  # with both shapes
    left_out: list[str]

    def __str__(self) -> str:
        text = f"{len(self.matched)} of {self.total} tensors match"
        for kind in ("missing", "unexpected", "mismatched"):
            if names := getattr(self, kind):
                more = ", ..." if len(names) > 3 else ""
                text += f"; {len(names)} {kind}: {', '.join(names[:3])}{more}"
        return text

    @property
    def total(self) -> int:
        return len(self.matched) + len(self.missing) + len(self.unexpected) + len(self.mismatched)

    @property
    def is_whole(self) -> bool:
        return len(self.matched) == self.total


def match_tensors(tensors: dict[str, Tensor], model: nn.Module) -> Match:
    """Heads and whatever else stands beside the backbone in a file does not count as unexpected."""
    own = model.state_dict()
    parts = {name.split(".")[0] for name in own}
    shared = [name for name in own if name in tensors]
    others = [name for name in tensors if name not in own]
    unexpected = [name for name in others if name.split(".")[0] in parts or MATTERS.fullmatch(name)]
    return Match(
        matched=[name for name in shared if own[name].shape == tensors[name].shape],
        missing=[name for name in own if name not in tensors],
        unexpected=unexpected,
        mismatched=[
            f"{name} {_shape(tensors[name])} for {_shape(own[name])}"
            for name in shared
            if own[name].shape != tensors[name].shape
        ],
        left_out=sorted({name.split(".")[0] for name in others} - {name.split(".")[0] for name in unexpected}),
    )


def check_match(match: Match, *, origin: str) -> None:
    """
    Raises:
        UserError: a tensor of the encoder is missing, unknown, or of another shape.
    """
    if not match.is_whole:
        raise UserError(
            f"{origin} does not fill its backbone: {match}. Every tensor of the encoder must be there and known, or "
            "features would be others; choose a whole checkpoint, or the backbone that it was made for"
        )


def check_depth(origin: Path, arguments: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Compare the depth that a file claims with its tensors, before a network of that depth is built.

    Raises:
        UserError: there are fewer tensors than blocks.
    """
    depths = arguments.get("depths", arguments.get("depth", 0))
    num_blocks = sum(depths) if isinstance(depths, tuple) else depths
    if num_blocks > len(tensors):
        raise UserError(
            f"{origin} does not hold the network that it says it does: {num_blocks} blocks of {len(tensors)} tensors. "
            "Export the backbone again"
        )


def load_matching(tensors: dict[str, Tensor], model: nn.Module, match: Match) -> None:
    """Copy what fits."""
    model.load_state_dict({name: tensors[name] for name in match.matched}, strict=False)


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape))
