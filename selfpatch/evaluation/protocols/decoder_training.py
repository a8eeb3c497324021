"""Settings that Semantic FPN and UPerNet share."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from selfpatch.config.ranges import (
    Ascending,
    Config,
    DropProbability,
    Fraction,
    NonNegative,
    Positive,
    Probability,
    Range,
    Seed,
    UnitInterval,
)

BLOCKS = 12  # of the transformer whose blocks out_indices count
BlockIndex = Range(at_least=0, at_most=BLOCKS - 1)


@dataclass(frozen=True, kw_only=True)
class DecoderTraining(Config):
    """The whole backbone is trained with a decoder, as mmsegmentation trains a vision transformer on ADE20K."""

    # blocks whose tokens the decoder reads, from 0, of twelve; in a backbone of another depth, the blocks at the same
    # fractions of its depth; a hierarchical backbone such as Swin gives its four stages
    out_indices: Annotated[tuple[int, int, int, int], BlockIndex, Ascending] = (2, 5, 8, 11)
    # stochastic depth rate of the last block, rising linearly from 0 at the first
    drop_path: Annotated[float, DropProbability] = 0.1
    # dropout rate of channels before the classifier (dropout2d)
    dropout: Annotated[float, DropProbability] = 0.1
    # short side of the images in pixels, rounded down to a multiple of the patch size; also the side of training crops
    # and of test windows
    image_size: Annotated[int, Positive] = 512
    # largest long side of the images in pixels, before the random scale of training
    long_side: Annotated[int, Positive] = 2048
    # antialias images when they are shrunk; OpenCV, which mmsegmentation uses, does not
    antialias: bool = False
    # random scale of training images, uniform between the two numbers
    scale: Annotated[tuple[float, float], Positive, Ascending] = (0.5, 2.0)
    # largest fraction of a training crop that one class may cover: a crop with more is drawn anew, at most ten times;
    # 1: any crop is taken
    cat_max_ratio: Annotated[float, Fraction] = 0.75
    # probability of a horizontal flip in training
    hflip_prob: Annotated[float, Probability] = 0.5
    # vary brightness, contrast, saturation and hue of training images (mmsegmentation's PhotoMetricDistortion)
    photometric_distortion: bool = True
    # number of optimizer steps (AdamW)
    steps: Annotated[int, Positive]
    # number of training crops per step
    batch_size: Annotated[int, Positive] = 16
    # peak learning rate
    lr: Annotated[float, Positive] = 6e-5
    # weight decay, on all parameters but position embeddings and class token, and the norms of a Swin
    weight_decay: Annotated[float, NonNegative] = 0.01
    # largest global gradient norm, a larger one is scaled down; 0: no clipping
    clip_norm: Annotated[float, NonNegative] = 0.0
    # number of steps of linear warm-up of the learning rate
    warmup_steps: Annotated[int, NonNegative] = 1500
    # learning rate at the first step, as a fraction of the peak
    warmup_start: Annotated[float, UnitInterval] = 1e-6
    # power of the polynomial decay of the learning rate after its warm-up; 1: linear to 0
    power: Annotated[float, Positive] = 1.0
    # training precision: float32 as published, bf16, or auto (bf16 on a GPU that has it)
    precision: Literal["float32", "bf16", "auto"] = "float32"
    # activation checkpointing of the backbone's blocks: less memory, a third slower, same results
    recompute: bool = field(default=False, compare=False)
    # inference on the "whole" image, or on windows that "slide" over it
    inference: Literal["whole", "slide"] = "whole"
    # stride of the sliding windows in pixels
    stride: Annotated[int, Positive] = 341
    # seed of the decoder's initialization, the order of the images and their augmentation
    seed: Annotated[int, Seed] = 0
    # largest number of images of each split, spread evenly over it; None: all
    max_images: Annotated[int | None, Positive] = None

    @property
    def differs(self) -> tuple[str, ...]:
        """Departures from the program of the presets; result.json lists them beside the numbers."""
        return (
            "position embeddings are resampled as the backbone does it, where mmsegmentation takes bicubic ones",
            "batches run on over the ends of epochs",
        )

    def __post_init__(self):
        super().__post_init__()
        self.require(
            self.long_side >= self.image_size,
            "long_side",
            f"it must be at least image-size, the short side, which is {self.image_size}",
        )
        self.require(
            self.stride <= self.image_size,
            "stride",
            f"it must be at most image-size, the side of a window, which is {self.image_size}: more leaves gaps",
        )
        self.require(self.warmup_steps < self.steps, "warmup_steps", f"it must be less than steps, {self.steps}")


# Minutes on a CPU, for trials; nobody's protocol.
QUICK = {
    "image_size": 224, "long_side": 896, "stride": 149, "steps": 100, "batch_size": 4, "lr": 3e-4, "warmup_steps": 10,
    "max_images": 50,
}  # fmt: skip
