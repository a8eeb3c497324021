"""Settings of the multi-crop augmentation."""

from dataclasses import dataclass
from typing import Annotated

from selfpatch.config.ranges import (
    Ascending,
    BelowOne,
    Config,
    Finite,
    Fraction,
    NonNegative,
    Positive,
    Probability,
    Range,
)

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def rows_columns(size: int | tuple[int, int] | None) -> tuple[int, int]:
    """An image size in pixels as (rows, columns)."""
    assert size is not None  # derived by now
    return (size, size) if isinstance(size, int) else size


@dataclass(frozen=True)
class CropsConfig(Config, group="crops"):
    """DINO's multi-crop augmentation. Sizes are in pixels: a number, or rows and columns."""

    # side of the global crops in pixels; None: derived from the hardware
    global_size: Annotated[int | tuple[int, int] | None, Positive] = 224
    # number of global crops per image; the teacher sees these
    num_global: Annotated[int, Range(at_least=2)] = 2
    # area of a global crop as a fraction of the image, from and to
    global_scale: Annotated[tuple[float, float], Fraction, Ascending] = (0.25, 1.0)
    # side of the local crops in pixels; None: three sevenths of the global crops
    local_size: Annotated[int | tuple[int, int] | None, Positive] = 96
    # number of local crops per image; 0: none
    num_local: Annotated[int, NonNegative] = 8
    # area of a local crop as a fraction of the image, from and to
    local_scale: Annotated[tuple[float, float], Fraction, Ascending] = (0.05, 0.25)
    # probability of a horizontal flip
    hflip_prob: Annotated[float, Probability] = 0.5
    # strength of color jitter: largest change of brightness, contrast, saturation and hue
    color_jitter: Annotated[tuple[float, float, float, float], NonNegative] = (0.4, 0.4, 0.2, 0.1)
    # largest change of the gain of each channel for itself, part of the color jitter of images that are not RGB
    channel_gain: Annotated[float, BelowOne] = 0.2
    # probability of color jitter
    color_jitter_prob: Annotated[float, Probability] = 0.8
    # probability of conversion to grayscale
    grayscale_prob: Annotated[float, Probability] = 0.2
    # probability of Gaussian blur on the first global crop, on the other global crops, on the local crops
    blur_prob: Annotated[tuple[float, float, float], Probability] = (1.0, 0.1, 0.5)
    # standard deviation of the Gaussian blur in pixels, uniform between the two numbers
    blur_sigma: Annotated[tuple[float, float], Positive, Ascending] = (0.1, 2.0)
    # probability of solarization on every global crop but the first
    solarize_prob: Annotated[float, Probability] = 0.2
    # mean of each channel that crops are normalized with, for pixel values in [0, 1]; None: that of the weights the run
    # starts from (--init-from), else ImageNet's, or of images that are not 8-bit RGB their own
    mean: Annotated[tuple[float, ...] | None, Finite] = None
    # standard deviation of each channel that crops are normalized with, for pixel values in [0, 1]; None: as the mean
    std: Annotated[tuple[float, ...] | None, Positive] = None

    @property
    def normalization(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation of each channel, ImageNet's where they are not set."""
        return self.mean or IMAGENET_MEAN, self.std or IMAGENET_STD

    def __post_init__(self):
        super().__post_init__()
        if self.num_local and self.global_size is not None and self.local_size is not None:
            (rows, columns), (local_rows, local_columns) = rows_columns(self.global_size), rows_columns(self.local_size)
            self.require(
                local_rows < rows and local_columns < columns,
                "local_size",
                f"it must be smaller than global-size {self.global_size}, as local crops are parts of an image that "
                "the student alone sees: make them smaller, or leave them out (num-local 0)",
            )
