"""Settings of linear classification."""

from dataclasses import dataclass, replace
from typing import Annotated

from selfpatch.config.ranges import (
    Ascending,
    BelowOne,
    Config,
    Distinct,
    Fraction,
    NonEmpty,
    NonNegative,
    Positive,
    Probability,
    Seed,
)
from selfpatch.evaluation.protocols.knn_classification import ImageVector

PUBLISHED_BATCH = 8 * 128


@dataclass(frozen=True)
class LinearClassification(Config):
    """Linear layers trained on frozen vectors of images, of which the best is reported. The defaults: DINOv2's.

    A model with a class token gets 26 layers: 2 vectors x 13 learning rates. One without gets 13.
    """

    # short side in pixels to which validation images are resized before the center crop
    resize_size: Annotated[int, Positive] = 256
    # side of the center crop and of training crops in pixels, rounded down to a multiple of the patch size
    image_size: Annotated[int, Positive] = 224
    # feature vectors of an image, one linear layer for each; auto: the class token alone and with the mean of the patch
    # tokens, or that mean where there is no class token
    vectors: Annotated[tuple[ImageVector, ...], NonEmpty, Distinct] = ("auto",)
    # peak learning rates for a batch of 256, scaled linearly with the batch size; one linear layer for each
    lrs: Annotated[tuple[float, ...], NonEmpty, Positive, Distinct] = (
        1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1,
    )  # fmt: skip
    # number of optimizer steps (SGD); learning rates decay to 0 by a cosine
    steps: Annotated[int, Positive] = 12_500
    # number of training crops per step; the published numbers took 128 on each of 8 GPUs
    batch_size: Annotated[int, Positive] = PUBLISHED_BATCH
    # momentum of SGD
    momentum: Annotated[float, BelowOne] = 0.9
    # weight decay, on weights and biases alike
    weight_decay: Annotated[float, NonNegative] = 0.0
    # area of a training crop as a fraction of the image, uniform between the two numbers
    crop_scale: Annotated[tuple[float, float], Fraction, Ascending] = (0.08, 1.0)
    # probability of a horizontal flip in training
    hflip_prob: Annotated[float, Probability] = 0.5
    # seed of the layers' initialization, the order of the images and their crops
    seed: Annotated[int, Seed] = 0
    # largest number of images of each split, the same number of every class, spread evenly; None: all
    max_images: Annotated[int | None, Positive] = None

    def __post_init__(self):
        super().__post_init__()
        self.require(
            self.resize_size >= self.image_size,
            "resize_size",
            f"it must be at least image-size, the side of the center crop, which is {self.image_size}",
        )

    @property
    def differs(self) -> tuple[str, ...]:
        """Departures from the program of the presets; result.json lists them beside the numbers."""
        differs = (
            "vectors of the last block alone, 26 layers: the program's other 26 join the class tokens of the last four",
            "the backbone runs in float32, not under float16 autocast",
        )
        if self.batch_size == PUBLISHED_BATCH:
            return differs
        return (*differs, f"{self.batch_size} images per step; published are 128 on each of 8 GPUs")


DINOV2 = LinearClassification()
PRESETS = {
    # as published: run/submit.py asks for 8 GPUs, eval/linear.py takes 128 images on each
    "dinov2": DINOV2,
    # eval/linear.py alone, on one GPU: an eighth of the training images
    "dinov2-one-gpu": replace(DINOV2, batch_size=128),
    # nobody's protocol: for trials
    "quick": LinearClassification(
        resize_size=146, image_size=128, lrs=(1e-3, 1e-2, 0.1), steps=200, batch_size=16, max_images=500
    ),
}
