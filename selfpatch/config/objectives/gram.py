"""Settings of Gram anchoring, which keeps the similarities between patches of an earlier teacher."""

from dataclasses import dataclass
from typing import Annotated

from selfpatch.config.objectives.objective import ObjectiveConfig
from selfpatch.config.ranges import NonNegative, Positive


@dataclass(frozen=True)
class GramConfig(ObjectiveConfig, group="objectives.gram"):
    """Patch-level regularizer: patches of a crop are as similar to each other as an earlier teacher sees them."""

    # weight of Gram anchoring in the loss
    weight: Annotated[float, NonNegative] = 2.0

    # epochs after which the teacher is copied as the Gram teacher; 0: as it begins, which is for runs that start from
    # trained weights (--init-from)
    teacher_epoch: Annotated[float, NonNegative] = 0.0
    # epochs before this objective takes part
    start_epoch: Annotated[float, NonNegative] = 0.0
    # steps from the start to the first refresh, and between refreshes, where the Gram teacher becomes the teacher of
    # then; None: it never changes
    refresh_steps: Annotated[int | None, Positive] = 10_000

    def __post_init__(self):
        super().__post_init__()
        self.require(
            self.teacher_epoch <= self.start_epoch,
            "teacher_epoch",
            f"the Gram teacher must be there when the objective starts: at most start-epoch ({self.start_epoch:g})",
        )
