"""Which of a backbone's tensors a file has: said, and refused below nine of ten."""

from typing import NamedTuple

from torch import Tensor, nn

from selfpatch.errors import UserError


class Match(NamedTuple):
    """Names of a backbone's tensors, by whether a file has them in the right shape."""

    matched: list[str]
    missing: list[str]
    unexpected: list[str]
    mismatched: list[str]  # with both shapes

    def __str__(self) -> str:
        text = f"{len(self.matched)} of {self.total} tensors match"
        for kind in ("missing", "unexpected", "mismatched"):
            if names := getattr(self, kind):
                more = ", ..." if len(names) > 3 else ""
                text += f"; {len(names)} {kind.replace('_', ' of ')}: {', '.join(names[:3])}{more}"
        return text

    @property
    def total(self) -> int:
        return len(self.matched) + len(self.missing) + len(self.unexpected) + len(self.mismatched)


def match_tensors(tensors: dict[str, Tensor], model: nn.Module) -> Match:
    """Heads and whatever else stands beside the backbone in a file does not count as unexpected."""
    own = model.state_dict()
    parts = {name.split(".")[0] for name in own}
    shared = [name for name in own if name in tensors]
    return Match(
        matched=[name for name in shared if own[name].shape == tensors[name].shape],
        missing=[name for name in own if name not in tensors],
        unexpected=[name for name in tensors if name not in own and name.split(".")[0] in parts],
        mismatched=[
            f"{name} {_shape(tensors[name])} for {_shape(own[name])}"
            for name in shared
            if own[name].shape != tensors[name].shape
        ],
    )


def check_match(match: Match, *, origin: str) -> None:
    """
    Raises:
        UserError: less than 90 % of the tensors match.
    """
    if 10 * len(match.matched) < 9 * match.total:
        raise UserError(
            f"{origin} belongs to another backbone: {match}. At least 90 % must match; choose the backbone that it was "
            "made for"
        )


def load_matching(tensors: dict[str, Tensor], model: nn.Module, *, origin: str) -> Match:
    """Copy what fits; raises ValueError, with nothing copied, below 90 %."""
    match = match_tensors(tensors, model)
    check_match(match, origin=origin)
    model.load_state_dict({name: tensors[name] for name in match.matched}, strict=False)
    return match


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape))
