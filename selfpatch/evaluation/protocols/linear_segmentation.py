"""Settings of linear segmentation."""

from dataclasses import dataclass
from typing import Annotated, Literal

from selfpatch.config.ranges import (
    Ascending,
    Config,
    DropProbability,
    Fraction,
    NonNegative,
    Positive,
    Probability,
    Seed,
)


@dataclass(frozen=True)
class LinearSegmentation(Config):
    """One linear layer trained on frozen patch tokens. The defaults are DINOv3's protocol."""

    # short side of the images in pixels, and side of training crops and test windows
    image_size: Annotated[int, Positive] = 512
    # fit of crops and windows to whole patches: "floor" rounds their side down to whole patches (504 at patch 14),
    # "center_pad" keeps it and pads the input of the backbone with the mean color on all sides (512 to 518)
    patch_fit: Literal["floor", "center_pad"] = "floor"
    # largest long side of the images in pixels, before the random scale of training; None: no limit
    long_side: Annotated[int | None, Positive] = None
    # antialias images when they are shrunk; OpenCV, which mmsegmentation uses, does not
    antialias: bool = True
    # stride of the test windows in pixels
    stride: Annotated[int, Positive] = 341
    # random scale of the short side of training images, uniform between the two numbers
    scale: Annotated[tuple[float, float], Positive, Ascending] = (0.5, 2.0)
    # largest fraction of a training crop that one class may cover: a crop with more is drawn anew, at most ten times;
    # 1: any crop is taken
    cat_max_ratio: Annotated[float, Fraction] = 0.75
    # probability of a horizontal flip in training
    hflip_prob: Annotated[float, Probability] = 0.5
    # vary brightness, contrast, saturation and hue of training images (PhotoMetricDistortion)
    photometric_distortion: bool = True
    # whose PhotoMetricDistortion: mmsegmentation's turns hue by up to a tenth of the circle and scales HSV saturation,
    # DINOv3's turns hue by up to half the circle and blends with gray
    photometric_style: Literal["dinov3", "mmseg"] = "dinov3"
    # dropout rate of channels of the tokens (dropout2d)
    dropout: Annotated[float, DropProbability] = 0.1
    # number of optimizer steps (AdamW)
    steps: Annotated[int, Positive] = 40_000
    # number of training crops per step
    batch_size: Annotated[int, Positive] = 16
    # peak learning rate
    lr: Annotated[float, Positive] = 1e-3
    # weight decay, on weights and biases alike
    weight_decay: Annotated[float, NonNegative] = 1e-3
    # largest global gradient norm, a larger one is scaled down; 0: no clipping
    clip_norm: Annotated[float, NonNegative] = 0.0
    # number of steps of warm-up of the learning rate
    warmup_steps: Annotated[int, NonNegative] = 1500
    # decay of the learning rate after its warm-up: by a cosine to 0 (one_cycle), or linearly to 0 (poly, power 1)
    schedule: Literal["one_cycle", "poly"] = "one_cycle"
    # number of steps between validations, of which the best is reported; None: the last weights are
    eval_interval: Annotated[int | None, Positive] = 5_000
    # seed of the layer's initialization, the order of the images and their crops
    seed: Annotated[int, Seed] = 0
    # largest number of images of each split, spread evenly over it; None: all
    max_images: Annotated[int | None, Positive] = None

    def __post_init__(self):
        super().__post_init__()
        self.require(
            self.stride <= self.image_size,
            "stride",
            f"it must be at most image-size, the side of a window, which is {self.image_size}: more leaves gaps",
        )
        self.require(self.warmup_steps < self.steps, "warmup_steps", f"it must be less than steps, {self.steps}")

    @property
    def differs(self) -> tuple[str, ...]:
        """Departures from the program of the presets; result.json lists them beside the numbers."""
        differs = [
            "a side shorter than the window is filled up with the mean color, where the program takes it as it is"
        ]
        if self.photometric_style == "mmseg":
            differs.append(
                "labels are resized about the centers of pixels, where OpenCV takes their upper left corners"
            )
        if self.patch_fit == "floor" and self.image_size % 14:
            side = self.image_size // 14 * 14
            differs.append(
                f"at patch 14 crops and windows are rounded down to {side} px; DINOv3 has patches of 16 alone"
            )
        return tuple(differs)


@dataclass(frozen=True)
class LeopartSegmentation(Config):
    """One 1x1 convolution on frozen tokens, trained on maps of 100 x 100 and scored at 448 x 448."""

    # side of the square images in pixels, rounded down to a multiple of the patch size
    image_size: Annotated[int, Positive] = 448
    # side in pixels of the feature maps and masks on which the layer is trained
    mask_size: Annotated[int, Positive] = 100
    # side in pixels of the masks on which the layer is scored; the program's checks during training take 100
    eval_mask_size: Annotated[int, Positive] = 448
    # area of a training crop as a fraction of the image, uniform between the two numbers; aspect ratio 3/4 to 4/3
    crop_area: Annotated[tuple[float, float], Fraction, Ascending] = (0.8, 1.0)
    # probability of a horizontal flip in training
    hflip_prob: Annotated[float, Probability] = 0.5
    # number of passes over the training images
    epochs: Annotated[int, Positive] = 25
    # epoch after which the learning rate is divided by ten
    drop_at: Annotated[int, Positive] = 20
    # number of training crops per step: 60 on each of two GPUs
    batch_size: Annotated[int, Positive] = 120
    # learning rate of SGD with momentum 0.9
    lr: Annotated[float, Positive] = 0.01
    # weight decay, on weights and biases alike
    weight_decay: Annotated[float, NonNegative] = 1e-4
    # seed of the layer's initialization, the order of the images and their crops
    seed: Annotated[int, Seed] = 0
    # largest number of images of each split, spread evenly over it; None: all
    max_images: Annotated[int | None, Positive] = None

    @property
    def differs(self) -> tuple[str, ...]:
        """Departures from the program of the presets; result.json lists them beside the numbers."""
        return (
            "the layer of the last epoch is scored, where the program leaves the choice among its three best",
            f"one batch of {self.batch_size} is averaged as a whole, not as the mean of the means of two GPUs",
        )


PRESETS = {
    # facebookresearch/dinov3 eval/segmentation, config-ade20k-linear-training.yaml
    "dinov3": LinearSegmentation(),
    # facebookresearch/dinov2, the linear heads of its hub
    "dinov2": LinearSegmentation(
        patch_fit="center_pad",
        long_side=2048,
        antialias=False,
        photometric_style="mmseg",
        dropout=0.0,
        weight_decay=1e-4,
        schedule="poly",
        eval_interval=None,
    ),
    # MkuuWaUjinga/leopart experiments/linear_probing, configs/pascal/dino.yml
    "leopart": LeopartSegmentation(),
    # nobody's protocol: for trials, minutes on a CPU
    "quick": LinearSegmentation(
        image_size=224, stride=149, steps=500, batch_size=8, warmup_steps=50, eval_interval=None, max_images=200
    ),
}
