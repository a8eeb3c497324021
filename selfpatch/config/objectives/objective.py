"""Settings that every objective has."""

from dataclasses import dataclass
from typing import Annotated

from selfpatch.config.ranges import Config, NonNegative


@dataclass(frozen=True)
class ObjectiveConfig(Config):
    """Base of every objective's settings."""

    # weight of this objective in the loss
    weight: Annotated[float, NonNegative] = 1.0

    @property
    def needs_aggregator(self) -> bool:
        return False
