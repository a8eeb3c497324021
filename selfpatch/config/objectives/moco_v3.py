"""Settings of MoCo v3, the image-level contrastive objective."""

from dataclasses import dataclass
from typing import Annotated

from selfpatch.config.objectives.objective import ObjectiveConfig
from selfpatch.config.ranges import NonNegative, Positive


@dataclass(frozen=True)
class MoCoV3Config(ObjectiveConfig, group="objectives.moco_v3"):
    """Image-level objective: a crop finds the teacher's other crop of its image among those of the batch."""

    # weight of the MoCo v3 objective in the loss
    weight: Annotated[float, NonNegative] = 1.0

    # temperature of the softmax over cosine similarities
    temperature: Annotated[float, Positive] = 0.2
    # width of the hidden layers of projector and predictor
    hidden_dim: Annotated[int, Positive] = 4096
    # width of queries and keys
    output_dim: Annotated[int, Positive] = 256
    # number of linear layers of the projector, which student and teacher have
    projector_layers: Annotated[int, Positive] = 3
    # number of linear layers of the predictor, which only the student has
    predictor_layers: Annotated[int, Positive] = 2
    # leave the patch embedding as it was drawn (MoCo v3's stop-grad-conv1), against dips in long runs
    freeze_patch_embed: bool = False
