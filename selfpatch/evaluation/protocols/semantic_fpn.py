"""Settings of Semantic FPN."""

from dataclasses import dataclass
from typing import Annotated

from selfpatch.config.ranges import Positive
from selfpatch.evaluation.protocols.decoder_training import QUICK, DecoderTraining


@dataclass(frozen=True, kw_only=True)
class SemanticFPN(DecoderTraining):
    """A feature pyramid on the backbone, trained with it. The defaults are SelfPatch's protocol for ADE20K.

    Source: alinlab/SelfPatch segmentation/configs/semfpn_vit-s16_512x512_40k_ade20k.py, and through it XCiT.
    """

    # width of the feature pyramid
    fpn_channels: Annotated[int, Positive] = 256
    # width of the head that sums the pyramid levels
    head_channels: Annotated[int, Positive] = 128
    # number of optimizer steps (AdamW); published with a batch of four images on each of four GPUs
    steps: Annotated[int, Positive] = 40_000


PRESETS = {
    "paper-40k": SemanticFPN(),
    # nobody's protocol: for trials, minutes on a CPU
    "quick": SemanticFPN(**QUICK),
}
