"""Settings of a projection head."""

from dataclasses import dataclass
from typing import Annotated, Literal

from selfpatch.config.ranges import Config, NonNegative, Positive


@dataclass(frozen=True)
class HeadConfig(Config, group="head"):
    """DINO's projection head: an MLP, an L2 norm and a linear layer to the prototypes with weights of fixed norm."""

    # K: number of prototypes, the width of the head's output; None: derived from the batch size
    num_prototypes: Annotated[int | None, Positive] = 65536
    # width of the hidden layers of the head's MLP
    hidden_dim: Annotated[int, Positive] = 2048
    # width of the bottleneck between the MLP and the prototypes
    bottleneck_dim: Annotated[int, Positive] = 256
    # batch norm in the hidden layers (DINO's use_bn_in_head): keeps short runs from stalling at a loss of ln K
    batch_norm: bool = False
    # keep the norm of every prototype at 1 (DINO's norm_last_layer)
    fix_prototype_norm: bool = True
    # epochs during which the prototypes are frozen (DINO's freeze_last_layer); "always": they are never
    # trained
    freeze_prototypes_epochs: Annotated[int | Literal["always"], NonNegative] = 1
