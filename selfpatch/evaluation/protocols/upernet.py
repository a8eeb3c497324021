"""Settings of UPerNet."""

from dataclasses import dataclass
from typing import Annotated

from selfpatch.config.ranges import NonEmpty, NonNegative, Positive, Range
from selfpatch.evaluation.protocols.decoder_training import QUICK, DecoderTraining


@dataclass(frozen=True, kw_only=True)
class UPerNet(DecoderTraining):
    """Pyramid pooling and a feature pyramid on the backbone, trained with it.

    The paper gives no settings for its UPerNet; the defaults are the nearest public ones.

    Source: mmsegmentation configs/vit/upernet_deit-s16_mln_512x512_160k_ade20k.py, which has one learning rate for all
    layers.
    """

    # scales of the pyramid made from a plain vision transformer's feature maps; a hierarchical backbone has its own
    neck_scales: Annotated[tuple[float, float, float, float], Positive] = (4.0, 2.0, 1.0, 0.5)
    # width of the decode head
    head_channels: Annotated[int, Positive] = 512
    # sides of the grids to which pyramid pooling reduces the coarsest level
    pool_scales: Annotated[tuple[int, ...], NonEmpty, Positive] = (1, 2, 3, 6)
    # weight of the loss of an auxiliary head on one level of the pyramid; 0: no such head
    auxiliary_weight: Annotated[float, NonNegative] = 0.4
    # width of the auxiliary head
    auxiliary_channels: Annotated[int, Positive] = 256
    # pyramid level that the auxiliary head reads, from 0 for the finest
    auxiliary_level: Annotated[int, Range(at_least=0, at_most=3)] = 3
    # number of optimizer steps (AdamW); published with a batch of two images on each of eight GPUs
    steps: Annotated[int, Positive] = 160_000

    def __post_init__(self):
        super().__post_init__()
        self.require(
            self.batch_size > 1 or min(self.pool_scales) > 1,
            "batch_size",
            "it must be at least 2 with pool-scales of 1, as batch norm of a 1 x 1 map needs two images",
        )


PRESETS = {
    "paper-160k": UPerNet(),
    # nobody's protocol: for trials, minutes on a CPU
    "quick": UPerNet(head_channels=128, auxiliary_channels=64, **QUICK),
}
