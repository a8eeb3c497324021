"""Settings of linear segmentation."""

from dataclasses import dataclass
from typing import Literal

from selfpatch.config import check
from selfpatch.evaluation.protocols.ranges import check_positive


@dataclass(frozen=True)
class LinearSegmentation:
    """One linear layer trained on frozen patch tokens. The defaults are DINOv3's protocol."""

    # short side of the images in pixels; rounded down to a multiple of the patch size, also the side of training crops
    # and of test windows
    image_size: int = 512
    # pixels that the long side has at most, before the random factor; None: as long as it is
    long_side: int | None = None
    # whether an image is shrunk by averaging over all its pixels; OpenCV, which mmsegmentation uses, does not
    antialias: bool = True
    # pixels from one test window to the next
    stride: int = 341
    # factor on the short side of training images, uniform between the two
    scale: tuple[float, float] = (0.5, 2.0)
    # a crop with more of one class than this share is drawn anew, ten times at most; 1 takes any crop
    cat_max_ratio: float = 0.75
    # of a mirror image
    hflip_prob: float = 0.5
    # whether brightness, contrast, saturation and hue of training images vary
    photometric_distortion: bool = True
    # of whole channels of the tokens (dropout2d)
    dropout: float = 0.1
    # of the optimizer, AdamW
    steps: int = 40_000
    # training crops a step
    batch_size: int = 16
    # peak learning rate
    lr: float = 1e-3
    # on weights and biases alike
    weight_decay: float = 1e-3
    # largest norm of the gradient; 0 leaves it alone
    clip_norm: float = 35.0
    # steps in which the learning rate rises
    warmup_steps: int = 1500
    # of the learning rate after its warm-up: half a cosine (one-cycle) or a straight line (poly, power 1) to 0
    schedule: Literal["one_cycle", "poly"] = "one_cycle"
    # of the layer's start, the order of the images and their crops
    seed: int = 0
    # at most so many images of each split, spread evenly over it; None: all
    max_images: int | None = None

    def __post_init__(self):
        check_positive(self, "image_size", "stride", "steps", "batch_size", "lr", "max_images", "long_side")
        check(
            self.stride <= self.image_size,
            f"stride is {self.stride} with windows of {self.image_size} px; at most {self.image_size} leaves no gaps",
        )
        low, high = self.scale
        check(0 < low <= high, f"scale is ({low}, {high}); 0 < low <= high is needed")
        check(0 <= self.hflip_prob <= 1, f"hflip-prob is {self.hflip_prob}; it is a probability in [0, 1]")
        check(0 <= self.dropout < 1, f"dropout is {self.dropout}; it is a probability in [0, 1)")
        check(0 < self.cat_max_ratio <= 1, f"max-class-share is {self.cat_max_ratio}; it must be in (0, 1]")
        for name in ("weight_decay", "clip_norm", "seed"):
            check(getattr(self, name) >= 0, f"{name.replace('_', '-')} is {getattr(self, name)}; it cannot be negative")
        check(
            0 <= self.warmup_steps < self.steps,
            f"warmup-steps is {self.warmup_steps} with steps {self.steps}; make it shorter than the training",
        )


@dataclass(frozen=True)
class LeopartSegmentation:
    """One 1x1 convolution on frozen tokens that are first resized to 100 x 100, and scored there."""

    # side of the square input in pixels, rounded down to a multiple of the patch size
    image_size: int = 448
    # side of the maps on which the layer is trained and scored
    mask_size: int = 100
    # share of the area of training crops, uniform between the two; their aspect ratio is 3/4 to 4/3
    crop_area: tuple[float, float] = (0.8, 1.0)
    # of a mirror image
    hflip_prob: float = 0.5
    # passes over the training images
    epochs: int = 25
    # epochs after which the learning rate is a tenth
    drop_at: int = 20
    # training crops a step
    batch_size: int = 60
    # of the optimizer, SGD with momentum 0.9
    lr: float = 0.01
    # on weights and biases alike
    weight_decay: float = 1e-4
    # of the layer's start, the order of the images and their crops
    seed: int = 0
    # at most so many images of each split, spread evenly over it; None: all
    max_images: int | None = None

    def __post_init__(self):
        check_positive(self, "image_size", "mask_size", "epochs", "drop_at", "batch_size", "lr", "max_images")
        low, high = self.crop_area
        check(0 < low <= high <= 1, f"crop-area is ({low}, {high}); 0 < low <= high <= 1 is needed")
        check(0 <= self.hflip_prob <= 1, f"hflip-prob is {self.hflip_prob}; it is a probability in [0, 1]")
        for name in ("weight_decay", "seed"):
            check(getattr(self, name) >= 0, f"{name.replace('_', '-')} is {getattr(self, name)}; it cannot be negative")


PRESETS = {
    "dinov3": LinearSegmentation(),
    "dinov2": LinearSegmentation(
        long_side=2048, antialias=False, dropout=0.0, weight_decay=1e-4, clip_norm=0.0, schedule="poly"
    ),
    "leopart": LeopartSegmentation(),
    # nobody's protocol: for trials, minutes on a CPU
    "quick": LinearSegmentation(image_size=224, stride=149, steps=500, batch_size=8, warmup_steps=50, max_images=200),
}
