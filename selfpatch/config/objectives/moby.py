"""Settings of MoBY, the image-level contrastive objective with a queue."""

from dataclasses import dataclass
from typing import Annotated

from selfpatch.config.objectives.objective import ObjectiveConfig
from selfpatch.config.ranges import NonNegative, Positive


@dataclass(frozen=True)
class MoBYConfig(ObjectiveConfig, group="objectives.moby"):
    """Image-level objective: a crop finds the teacher's other crop of its image among those of earlier batches."""

    # weight of the MoBY objective in the loss
    weight: Annotated[float, NonNegative] = 1.0

    # temperature of the softmax over cosine similarities
    temperature: Annotated[float, Positive] = 0.2
    # number of the teacher's keys of earlier steps that a query is compared with, per crop
    queue_size: Annotated[int, Positive] = 4096
    # width of the hidden layers of projector and predictor
    hidden_dim: Annotated[int, Positive] = 4096
    # width of queries and keys
    output_dim: Annotated[int, Positive] = 256
    # number of linear layers of the projector, which student and teacher have
    projector_layers: Annotated[int, Positive] = 2
    # number of linear layers of the predictor, which only the student has
    predictor_layers: Annotated[int, Positive] = 2
