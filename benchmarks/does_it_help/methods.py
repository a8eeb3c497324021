"""Methods that are compared: each is a change of a regime's DINO run, and nothing else differs."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

from selfpatch.config import AggregatorConfig, PretrainConfig, SelfPatchConfig
from selfpatch.config.masks import MaskConfig
from selfpatch.config.objectives.ibot import IBOTConfig
from selfpatch.config.objectives.neco import NeCoConfig

BASE = "dino"  # the method that all others are compared with
START = "start"  # no method: the weights before training


class Method(NamedTuple):
    """A method and its settings.

    Args:
        build: (DINO run of a regime, its length in epochs) -> the run of this method.
    """

    says: str
    build: Callable[[PretrainConfig, float], PretrainConfig]


def as_it_is(base: PretrainConfig, epochs: float) -> PretrainConfig:
    return base


def with_selfpatch(
    base: PretrainConfig, epochs: float, *, start: float = 0.0, ramp: float = 0.0, **switches: Any
) -> PretrainConfig:
    """The run with SelfPatch at weight 0.1, unless the switches say otherwise.

    Head and distillation are those of the image-level objective. A base without an aggregator gets one where the
    switches need it, and its image token then comes from there, as in the authors' code: else nothing would train it.

    Args:
        start, ramp: as fractions of the run.
    """
    dino = base.objectives.dino
    assert dino is not None
    given = {"weight": 0.1, "head": dino.head, "distillation": dino.distillation} | switches
    term = SelfPatchConfig(start_epoch=start * epochs, ramp_epochs=ramp * epochs, **given)
    aggregator = base.aggregator or (AggregatorConfig() if term.needs_aggregator else None)
    return replace(base, aggregator=aggregator, objectives=replace(base.objectives, selfpatch=term))


def with_ibot(base: PretrainConfig, epochs: float, *, weight: float) -> PretrainConfig:
    """The run with iBOT, whose patches have a head of their own, as in DINOv2."""
    dino = base.objectives.dino
    assert dino is not None
    term = IBOTConfig(weight=weight, head=dino.head, distillation=dino.distillation)
    return replace(base, objectives=replace(base.objectives, ibot=term))


def with_neco(base: PretrainConfig, epochs: float, *, weight: float) -> PretrainConfig:
    """The run with NeCo, at the sizes of `dino-neco-small`."""
    term = NeCoConfig(weight=weight, overlap_size=4, hidden_dim=256, output_dim=64)
    return replace(base, objectives=replace(base.objectives, neco=term))


AUTHORS: dict[str, Any] = {"padding_mode": "circular", "crops": "all", "num_positives": 4}
RECIPE: dict[str, Any] = {"padding_mode": "none", "crops": "global", "num_positives": 3}
WHOLE_IMAGE: dict[str, Any] = {
    "window_size": "image", "num_positives": 8, "aggregation": "similarity_weighted_mean", "padding_mode": "none",
    "crops": "global",
}  # fmt: skip
MASKED: dict[str, Any] = {"masks": MaskConfig(), "visible_weight": 0.5}
RECOLORED: dict[str, Any] = RECIPE | {"view": "recolored"}
OTHER: dict[str, Any] = RECIPE | {"view": "other"}
LATE: dict[str, Any] = {"start": 0.4, "ramp": 0.2}
SMALL = "neighbors inside of global crops"

METHODS = {
    BASE: Method("DINO", as_it_is),
    "selfpatch": Method("+ SelfPatch 0.1, switches of the authors' code", partial(with_selfpatch, **AUTHORS)),
    "ibot": Method("+ iBOT 0.1", partial(with_ibot, weight=0.1)),
    "ibot-1": Method("+ iBOT 1, as its authors weigh it", partial(with_ibot, weight=1.0)),
    "neco": Method("+ NeCo 0.1", partial(with_neco, weight=0.1)),
    "selfpatch-small": Method(f"+ SelfPatch 0.1, {SMALL}", partial(with_selfpatch, **RECIPE)),
    "selfpatch-late": Method(
        f"+ SelfPatch 0.1, {SMALL}, from 0.4 of the run on", partial(with_selfpatch, **RECIPE, **LATE)
    ),
    "selfpatch-recolored": Method("+ SelfPatch 0.1, targets of a recolored crop", partial(with_selfpatch, **RECOLORED)),
    "selfpatch-recolored-late": Method(
        "+ SelfPatch 0.1, as `dino-selfpatch-small`: targets of a recolored crop, from 0.4 of the run on",
        partial(with_selfpatch, **RECOLORED, **LATE),
    ),
    "selfpatch-recolored-late-1": Method(
        "+ SelfPatch 1, targets of a recolored crop, from 0.4 of the run on",
        partial(with_selfpatch, **RECOLORED, **LATE, weight=1.0),
    ),
    "selfpatch-other-late": Method(
        "+ SelfPatch 0.1, targets of the other crop, from 0.4 of the run on", partial(with_selfpatch, **OTHER, **LATE)
    ),
    "selfpatch-other": Method("+ SelfPatch 0.1, targets of the other crop", partial(with_selfpatch, **OTHER)),
    "selfpatch-masked": Method(
        "+ SelfPatch 0.1, masks, visible patches at half weight", partial(with_selfpatch, **RECIPE, **MASKED)
    ),
    "selfpatch-image": Method(
        "+ SelfPatch 0.1, 8 neighbors of the whole image", partial(with_selfpatch, **WHOLE_IMAGE)
    ),
    "selfpatch-image-masked": Method(
        "+ SelfPatch 0.1, 8 neighbors of the whole image, masks, visible patches at half weight",
        partial(with_selfpatch, **WHOLE_IMAGE, **MASKED),
    ),
}
