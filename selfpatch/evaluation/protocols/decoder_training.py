"""Settings that Semantic FPN and UPerNet share."""

from dataclasses import dataclass, field
from typing import Literal

from selfpatch.config import check
from selfpatch.evaluation.protocols.ranges import check_positive

BLOCKS = 12  # that taps are given for


@dataclass(frozen=True, kw_only=True)
class DecoderTraining:
    """The whole backbone is trained with a decoder, as mmsegmentation trains a vision transformer on ADE20K."""

    # blocks whose tokens the decoder reads, from 0, of twelve; another depth reads after the same shares of its blocks,
    # and a pyramid such as Swin gives its four stages
    taps: tuple[int, int, int, int] = (2, 5, 8, 11)
    # stochastic depth of the last block; it rises evenly from 0 at the first
    drop_path: float = 0.1
    # of whole channels before the layer that gives the classes (dropout2d)
    dropout: float = 0.1
    # short side of the images in pixels; rounded down to a multiple of the patch size, also the side of training crops
    # and of test windows
    image_size: int = 512
    # pixels that the long side has at most, before the random factor
    long_side: int = 2048
    # whether an image is shrunk by averaging over all its pixels; OpenCV, which mmsegmentation uses, does not
    antialias: bool = False
    # factor on the size of training images, uniform between the two
    scale: tuple[float, float] = (0.5, 2.0)
    # a crop with more of one class than this share is drawn anew, ten times at most; 1 takes any crop
    cat_max_ratio: float = 0.75
    # of a mirror image
    hflip_prob: float = 0.5
    # whether brightness, contrast, saturation and hue of training images vary
    photometric_distortion: bool = True
    # of the optimizer, AdamW
    steps: int
    # training crops a step
    batch_size: int = 16
    # peak learning rate
    lr: float = 6e-5
    # on all but position embeddings, class token and norms of the backbone
    weight_decay: float = 0.01
    # largest norm of the gradient; 0 leaves it alone
    clip_norm: float = 0.0
    # steps in which the learning rate rises
    warmup_steps: int = 1500
    # share of the learning rate at the first step
    warmup_start: float = 1e-6
    # of the share of steps left, which the learning rate follows after its warm-up (poly): 1 is a straight line to 0
    power: float = 1.0
    # numbers of the training: float32 as published, bf16, or auto (bf16 on a GPU that has it)
    precision: Literal["float32", "bf16", "auto"] = "float32"
    # whether blocks compute their activations again instead of keeping them: less memory, a third slower, same numbers
    recompute: bool = field(default=False, compare=False)
    # of an image: as a "whole", or by windows that "slide"
    inference: Literal["whole", "slide"] = "whole"
    # pixels from one window to the next
    stride: int = 341
    # of the decoder's start, the order of the images and their crops
    seed: int = 0
    # at most so many images of each split, spread evenly over it; None: all
    max_images: int | None = None

    def __post_init__(self):
        check_positive(self, "image_size", "long_side", "steps", "batch_size", "lr", "power", "stride", "max_images")
        check(
            all(0 <= tap < BLOCKS for tap in self.taps) and list(self.taps) == sorted(self.taps),
            f"taps is {self.taps}; they are four of the blocks 0 to {BLOCKS - 1}, in order",
        )
        check(
            self.long_side >= self.image_size,
            f"long-side is {self.long_side} with image-size {self.image_size}, the short side; make it no smaller",
        )
        check(
            self.stride <= self.image_size,
            f"stride is {self.stride} with windows of {self.image_size} px; at most {self.image_size} leaves no gaps",
        )
        low, high = self.scale
        check(0 < low <= high, f"scale is ({low}, {high}); 0 < low <= high is needed")
        check(0 <= self.hflip_prob <= 1, f"hflip-prob is {self.hflip_prob}; it is a probability in [0, 1]")
        for name in ("dropout", "drop_path"):
            value = getattr(self, name)
            check(0 <= value < 1, f"{name.replace('_', '-')} is {value}; it is a probability in [0, 1)")
        check(0 < self.cat_max_ratio <= 1, f"max-class-share is {self.cat_max_ratio}; it must be in (0, 1]")
        check(0 <= self.warmup_start <= 1, f"warmup-start is {self.warmup_start}; it is a share in [0, 1]")
        for name in ("weight_decay", "clip_norm", "seed"):
            check(getattr(self, name) >= 0, f"{name.replace('_', '-')} is {getattr(self, name)}; it cannot be negative")
        check(
            0 <= self.warmup_steps < self.steps,
            f"warmup-steps is {self.warmup_steps} with steps {self.steps}; make it shorter than the training",
        )


# Minutes on a CPU, for trials; nobody's protocol.
QUICK = {
    "image_size": 224, "long_side": 896, "stride": 149, "steps": 100, "batch_size": 4, "lr": 3e-4, "warmup_steps": 10,
    "max_images": 50,
}  # fmt: skip
