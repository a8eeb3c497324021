"""Settings of all frozen tasks at once."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from selfpatch.evaluation.protocols.ranges import check_positive


@dataclass(frozen=True)
class AllFrozen:
    """Every task of frozen patches that the data allow, each by its own protocol, with features encoded once."""

    # each task's published protocol, or its preset for trials
    protocols: Literal["published", "quick"] = "published"
    # where features are kept, for other runs too; None: OUT/features
    cache: Path | None = None
    # largest size of the cache in gigabytes; 0 keeps nothing
    cache_gb: float = 20.0
    # which tasks; none: all that the data allow
    tasks: tuple[str, ...] = ()

    def __post_init__(self):
        if self.cache_gb != 0:
            check_positive(self, "cache_gb")


PRESETS = {"published": AllFrozen(), "quick": AllFrozen(protocols="quick")}
