"""Settings of a run over several tasks of frozen features."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from selfpatch.config.ranges import Config, NonEmpty, NonNegative

FROZEN = "frozen"  # in place of the names of tasks: all that the data allow


@dataclass(frozen=True)
class FrozenTasks(Config):
    """Tasks of frozen features, each by its own protocol, with images encoded once."""

    # names of tasks, or "frozen" for every task of frozen features that the data allow
    tasks: Annotated[tuple[str, ...], NonEmpty] = (FROZEN,)
    # protocol of each task: the published one (its first preset), or "quick", the preset for trials
    preset: Literal["published", "quick"] = "published"
    # folder in which features are kept, which other runs may share; None: OUT/features
    cache: Path | None = None
    # largest size of the feature cache in gigabytes; 0: no cache
    cache_gb: Annotated[float, NonNegative] = 20.0
