"""Settings of Semantic FPN."""

from dataclasses import dataclass

from selfpatch.evaluation.protocols.decoder_training import QUICK, DecoderTraining
from selfpatch.evaluation.protocols.ranges import check_positive


@dataclass(frozen=True, kw_only=True)
class SemanticFPN(DecoderTraining):
    """A feature pyramid on the backbone, trained with it. The defaults are SelfPatch's protocol for ADE20K.

    Source: alinlab/SelfPatch segmentation/configs/semfpn_vit-s16_512x512_40k_ade20k.py, and through it XCiT.
    """

    # width of the feature pyramid
    fpn_channels: int = 256
    # width of the head that adds its levels
    head_channels: int = 128
    # of the optimizer; the batch was four images on each of four GPUs
    steps: int = 40_000

    def __post_init__(self):
        super().__post_init__()
        check_positive(self, "fpn_channels", "head_channels")


PRESETS = {
    "paper-40k": SemanticFPN(),
    # nobody's protocol: for trials, minutes on a CPU
    "quick": SemanticFPN(**QUICK),
}
