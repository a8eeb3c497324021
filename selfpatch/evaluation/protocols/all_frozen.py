"""Settings of all frozen tasks at once."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from selfpatch.config.ranges import Config, NonNegative


@dataclass(frozen=True)
class AllFrozen(Config):
    """Every task of frozen patches that the data allow, each by its own protocol, with features encoded once."""

    # protocol of each task: the published one (its first preset), or "quick", the preset for trials
    protocols: Literal["published", "quick"] = "published"
    # folder in which features are kept, which other runs may share; None: OUT/features
    cache: Path | None = None
    # largest size of the feature cache in gigabytes; 0: no cache
    cache_gb: Annotated[float, NonNegative] = 20.0
    # frozen tasks to run; without the flag, all that the data allow
    tasks: tuple[str, ...] = ()


PRESETS = {"published": AllFrozen(), "quick": AllFrozen(protocols="quick")}
