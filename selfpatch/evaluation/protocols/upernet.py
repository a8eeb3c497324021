"""Settings of UPerNet."""

from dataclasses import dataclass

from selfpatch.config import check
from selfpatch.evaluation.protocols.decoder_training import QUICK, DecoderTraining
from selfpatch.evaluation.protocols.ranges import check_positive


@dataclass(frozen=True, kw_only=True)
class UPerNet(DecoderTraining):
    """Pyramid pooling and a feature pyramid on the backbone, trained with it.

    The paper gives no settings for its UPerNet; the defaults are the nearest public ones.

    Source: mmsegmentation configs/vit/upernet_deit-s16_mln_512x512_160k_ade20k.py, which has one learning rate for all
    layers.
    """

    # factors that make a pyramid of a plain vision transformer's maps (a backbone that is a pyramid goes without)
    neck_scales: tuple[float, float, float, float] = (4.0, 2.0, 1.0, 0.5)
    # width of the head
    head_channels: int = 512
    # sides of the grids that the coarsest level is pooled to
    pool_scales: tuple[int, ...] = (1, 2, 3, 6)
    # factor on the loss of an auxiliary head on one level of the pyramid; 0: no such head
    auxiliary_weight: float = 0.4
    # width of that head
    auxiliary_channels: int = 256
    # its level, from 0 for the finest
    auxiliary_level: int = 3
    # of the optimizer; the batch was two images on each of eight GPUs
    steps: int = 160_000

    def __post_init__(self):
        super().__post_init__()
        check_positive(self, "head_channels", "auxiliary_channels")
        check(all(scale > 0 for scale in self.neck_scales), f"neck-scales is {self.neck_scales}; they must be above 0")
        check(
            bool(self.pool_scales) and all(scale > 0 for scale in self.pool_scales),
            f"pool-scales is {self.pool_scales}; one grid or more, of sides above 0, is needed",
        )
        check(self.auxiliary_weight >= 0, f"auxiliary-weight is {self.auxiliary_weight}; it cannot be negative")
        check(0 <= self.auxiliary_level <= 3, f"auxiliary-level is {self.auxiliary_level}; there are levels 0 to 3")
        check(
            self.batch_size > 1 or min(self.pool_scales) > 1,
            "batch-size is 1, but batch norm of a map pooled to one place needs two images; make it 2 or more",
        )


PRESETS = {
    "paper-160k": UPerNet(),
    # nobody's protocol: for trials, minutes on a CPU
    "quick": UPerNet(head_channels=128, auxiliary_channels=64, **QUICK),
}
