"""Settings of the patch-level objective, of which SelfPatch and iBOT are two choices."""

import math
from dataclasses import dataclass
from typing import Annotated, Literal

from selfpatch.config.masks import MaskConfig
from selfpatch.config.objectives.objective import ObjectiveConfig
from selfpatch.config.objectives.projection_head import HeadConfig
from selfpatch.config.objectives.self_distillation import SelfDistillationConfig
from selfpatch.config.ranges import NonNegative, Odd, Positive


@dataclass(frozen=True)
class PatchConfig(ObjectiveConfig):
    """Patch-level objective: each patch of the student predicts the teacher's patch there, or its neighbors."""

    # weight of the patch-level objective in the loss
    weight: Annotated[float, NonNegative] = 1.0

    # projection head: from patch tokens to prototypes; None: that of objectives.dino, which is shared
    head: HeadConfig | None = HeadConfig()

    # self-distillation: from logits to targets and predictions
    distillation: SelfDistillationConfig = SelfDistillationConfig()

    # side of the square neighborhood in patches, odd; 3 means 8 neighbors; "image": all other patches of the crop
    window_size: Annotated[int | Literal["image"], Odd] = 3
    # k: number of most similar neighbors that are aggregated
    num_positives: Annotated[int, Positive] = 4
    # neighbors beyond the image's border: from the opposite side (as SelfPatch's code), or none (as the paper's text)
    padding_mode: Literal["circular", "none"] = "circular"
    # crops on which the loss is computed; with "global" the teacher sees no local crop
    crops: Literal["all", "global"] = "all"

    # target of a patch: the teacher's patch at the same place, or the aggregate of its most similar neighbors
    target: Literal["self", "neighbors"] = "self"
    # aggregate of neighbors: by class attention (as SelfPatch), their mean, their mean with more weight on the more
    # similar ones, or the most similar one alone
    aggregation: Literal["class_attention", "mean", "similarity_weighted_mean", "nearest"] = "class_attention"

    # teacher's view that targets come from: the same crop, the same crop with colors drawn anew (the teacher sees its
    # global crops so, for all objectives), or the other global crop of the image, at the same place, for patches that
    # it shows whole
    view: Literal["same", "recolored", "other"] = "same"
    # stage of the backbone in whose tokens the most similar neighbors are sought, from 0, or from the end by -1; of a
    # plain vision transformer a stage is a block; None: its output
    layer: int | None = None

    # masks of the student's global crops; None: this objective asks for none
    masks: MaskConfig | None = None
    # weight of a masked patch in the mean over a crop's patches, relative to visible-weight
    masked_weight: Annotated[float, NonNegative] = 1.0
    # weight of a visible patch in the mean over a crop's patches; 0: the loss is on masked patches alone
    visible_weight: Annotated[float, NonNegative] = 1.0

    # epochs before this objective and its masks take part; None: four tenths of the run
    start_epoch: Annotated[float | None, NonNegative] = 0.0
    # epochs after its start in which the weight rises evenly from 0; None: a fifth of the run
    ramp_epochs: Annotated[float | None, NonNegative] = 0.0

    @property
    def needs_aggregator(self) -> bool:
        return self.target == "neighbors" and self.aggregation == "class_attention"

    @property
    def min_grid_side(self) -> int:
        """Side in patches of the smallest square grid in which positives can be sought."""
        return self.window_size if isinstance(self.window_size, int) else math.isqrt(self.num_positives) + 1

    def __post_init__(self):
        super().__post_init__()
        if isinstance(self.window_size, int):
            inside = (self.window_size // 2 + 1) ** 2 - 1 if self.padding_mode == "none" else self.window_size**2 - 1
            self.require(
                self.num_positives <= inside,
                "num_positives",
                f"with window-size {self.window_size} and padding-mode {self.padding_mode!r} every patch has {inside} "
                f"neighbors: choose 1 to {inside}, or a larger window",
            )
        self.require(
            self.view == "same" or self.crops == "global",
            "view",
            "local crops have no second view; choose crops 'global', or view 'same'",
        )
        self.require(
            self.layer is None or self.target == "neighbors",
            "layer",
            "with target 'self' no neighbors are sought; leave it out, or choose target 'neighbors'",
        )
        self.require(
            self.masked_weight > 0 or self.visible_weight > 0,
            "visible_weight",
            "with masked-weight 0 as well no patch counts; make one of them positive",
        )
        self.require(
            self.visible_weight > 0 or self.masks is not None,
            "visible_weight",
            "only masked patches count then, and nothing is masked; give masks, or a positive weight",
        )
        self.require(
            self.visible_weight > 0 or self.crops == "global",
            "visible_weight",
            "local crops are never masked, so none of their patches counts; choose crops 'global', or a positive "
            "weight",
        )
