"""Settings of KoLeo, which spreads image tokens."""

from dataclasses import dataclass
from typing import Annotated

from selfpatch.config.objectives.objective import ObjectiveConfig
from selfpatch.config.ranges import NonNegative


@dataclass(frozen=True)
class KoLeoConfig(ObjectiveConfig, group="objectives.koleo"):
    """Image-level regularizer: image tokens of a batch keep away from their nearest neighbors."""

    # weight of KoLeo in the loss
    weight: Annotated[float, NonNegative] = 0.1
