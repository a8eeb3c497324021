"""Settings of NeCo, the patch-level objective on the order of neighbors."""

from dataclasses import dataclass
from typing import Annotated, Literal

from selfpatch.config.objectives.objective import ObjectiveConfig
from selfpatch.config.ranges import NonNegative, Positive, Range


@dataclass(frozen=True)
class NeCoConfig(ObjectiveConfig, group="objectives.neco"):
    """Patch-level objective: student and teacher agree on which reference patches are nearer to a patch than others."""

    # weight of the NeCo objective in the loss
    weight: Annotated[float, NonNegative] = 1.0

    # crops of the student that are compared with the teacher's global crops, where they overlap
    crops: Literal["all", "global"] = "all"
    # rows and columns of the grid to which the overlap of two crops is brought; as many reference patches are sorted as
    # it has places, and the cost grows with the sixth power
    overlap_size: Annotated[int, Range(at_least=2, at_most=8)] = 7
    # comparisons by which references are sorted: bitonic needs fewer of them, odd_even compares those side by side
    sorting_network: Literal["bitonic", "odd_even"] = "bitonic"
    # steepness of the student's comparisons: 1 / cosine that must lie between two references to tell them apart
    student_steepness: Annotated[float, Positive] = 100.0
    # steepness of the teacher's comparisons
    teacher_steepness: Annotated[float, Positive] = 100.0

    # width of the hidden layers of the projector, which student and teacher have
    hidden_dim: Annotated[int, Positive] = 2048
    # width of the vectors that are compared
    output_dim: Annotated[int, Positive] = 256
