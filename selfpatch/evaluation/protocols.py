"""Every number of every evaluation task, named and with its source. Imports no torch, so that `--help` is quick.

A score means something only together with its protocol: the whole of it goes into result.json.
"""

from dataclasses import dataclass
from typing import Literal

from selfpatch.config import check


@dataclass(frozen=True)
class InContextSegmentation:
    """Labels by the nearest training patches, nothing trained (hummingbird)."""

    # side of the input in pixels, rounded down to a multiple of the patch size: 504 at patch 14
    image_size: int = 512
    # "square" as published; "keep_aspect": image_size is the short side
    resize: Literal["square", "keep_aspect"] = "square"
    # labelled patches kept; published at 1,024 x 10^2, 10^3 and 10^4
    memory_size: int = 102_400
    # k
    num_neighbours: int = 30
    # of the softmax over the cosines of the neighbours
    temperature: float = 0.02
    # images encoded at once
    batch_size: int = 16
    # which patches are kept
    seed: int = 0
    # at most so many images of each split, spread evenly over it; None: all
    max_images: int | None = None

    def __post_init__(self):
        check_positive(self, "image_size", "memory_size", "num_neighbours", "temperature", "batch_size", "max_images")
        check(self.seed >= 0, f"seed is {self.seed}; it cannot be negative")


@dataclass(frozen=True)
class LinearSegmentation:
    """One linear layer trained on frozen patch tokens. The defaults are DINOv3's protocol."""

    # short side of the images in pixels; rounded down to a multiple of the patch size, also the side of training crops
    # and of test windows
    image_size: int = 512
    # pixels from one test window to the next
    stride: int = 341
    # factor on the short side of training images, uniform between the two
    scale: tuple[float, float] = (0.5, 2.0)
    # a crop with more of one class than this share is drawn anew, ten times at most; 1 takes any crop
    max_class_share: float = 0.75
    # of a mirror image
    flip_prob: float = 0.5
    # whether brightness, contrast, saturation and hue of training images vary
    distort_colors: bool = True
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
        check_positive(self, "image_size", "stride", "steps", "batch_size", "lr", "max_images")
        check(
            self.stride <= self.image_size,
            f"stride is {self.stride} with windows of {self.image_size} px; at most {self.image_size} leaves no gaps",
        )
        low, high = self.scale
        check(0 < low <= high, f"scale is ({low}, {high}); 0 < low <= high is needed")
        check(0 <= self.flip_prob <= 1, f"flip-prob is {self.flip_prob}; it is a probability in [0, 1]")
        check(0 <= self.dropout < 1, f"dropout is {self.dropout}; it is a probability in [0, 1)")
        check(0 < self.max_class_share <= 1, f"max-class-share is {self.max_class_share}; it must be in (0, 1]")
        for name in ("weight_decay", "clip_norm", "seed"):
            check(getattr(self, name) >= 0, f"{name.replace('_', '-')} is {getattr(self, name)}; it cannot be negative")
        check(
            0 <= self.warmup_steps < self.steps,
            f"warmup-steps is {self.warmup_steps} with steps {self.steps}; make it shorter than the training",
        )


def check_positive(protocol: object, *names: str) -> None:
    for name in names:
        value = getattr(protocol, name)
        check(value is None or value > 0, f"{name.replace('_', '-')} is {value}; it must be above 0")


PROTOCOLS = {
    "in-context-segmentation": {
        "hummingbird": InContextSegmentation(),
        "quick": InContextSegmentation(
            image_size=224, memory_size=10_240, max_images=200
        ),  # nobody's protocol: for trials
    },
    "linear-segmentation": {
        "dinov3": LinearSegmentation(),
        "dinov2": LinearSegmentation(dropout=0.0, weight_decay=1e-4, clip_norm=0.0, schedule="poly"),
        # nobody's protocol: for trials, minutes on a CPU
        "quick": LinearSegmentation(
            image_size=224, stride=149, steps=500, batch_size=8, warmup_steps=50, max_images=200
        ),
    },
}
