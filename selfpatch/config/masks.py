"""How the student's global crops are masked."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class MaskConfig:
    """Masks of patches, drawn anew for every crop of every image at every step."""

    # shape of a mask: patches drawn one by one, or rectangular blocks of them (as BEiT and iBOT)
    kind: Literal["random", "block"] = "block"
    # lowest and highest ratio of masked patches in a masked crop, in [0, 1]
    ratio: tuple[float, float] = (0.1, 0.5)
    # probability that a crop is masked at all
    prob: float = 0.5
