"""Settings that every objective has."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from selfpatch.config.ranges import Config, NonNegative


@dataclass(frozen=True)
class ObjectiveConfig(Config):
    """Base of every objective's settings."""

    needs_aggregator: ClassVar[bool] = False

    # weight of this objective in the loss
    weight: Annotated[float, NonNegative] = 1.0
