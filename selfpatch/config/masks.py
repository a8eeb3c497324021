"""Settings of the masks on the student's global crops."""

from dataclasses import dataclass
from typing import Annotated, Literal

from selfpatch.config.ranges import Ascending, Config, Probability, UnitInterval


@dataclass(frozen=True)
class MaskConfig(Config, group="masks"):
    """Masks of patches, drawn anew for every crop of every image at every step."""

    # shape of a mask: patches drawn one by one, or rectangular blocks of them (as BEiT and iBOT)
    kind: Literal["random", "block"] = "block"
    # lowest and highest ratio of masked patches in a masked crop, in [0, 1]
    ratio: Annotated[tuple[float, float], UnitInterval, Ascending] = (0.1, 0.5)
    # probability that a crop is masked at all
    prob: Annotated[float, Probability] = 0.5
