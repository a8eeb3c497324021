"""Random parameters of crops: sampled crop by crop; those of flip and color also in batches of named tensors."""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int8
from torch import Tensor

from selfpatch.config import RGB_8, CropsConfig, PixelFormat
from selfpatch.data.augmentation.geometry import CropBox
from selfpatch.data.augmentation.random_source import RandomSource, uniform

# The operations of color jitter, numbered as in torchvision.
BRIGHTNESS, CONTRAST, SATURATION, HUE = JITTER_OPS = range(4)
# Of crops without jitter, in a batch.
_NO_JITTER, _NO_ORDER = (0.0, 0.0, 0.0, 0.0), (-1, -1, -1, -1)


class JitterParams(NamedTuple):
    """Factors of brightness, contrast and saturation (1: unchanged), hue shift in turns, order of the four.

    Of images that are not RGB the order has brightness and contrast alone, and `gains` a factor per channel.
    """

    brightness: float
    contrast: float
    saturation: float
    hue: float
    order: tuple[int, ...]
    gains: tuple[float, ...] = ()

    @property
    def hue_levels(self) -> int:
        """The shift in levels of 8 bits, rounded as torchvision does, though its hues have 256 levels."""
        return int(self.hue * 255)

    @property
    def by_op(self) -> tuple[float, float, float, float]:
        """The argument of every operation, the hue shift in levels."""
        return self.brightness, self.contrast, self.saturation, self.hue_levels


class ColorParams(NamedTuple):
    """Photometric parameters of one crop."""

    jitter: JitterParams | None
    grayscale: bool
    blur_sigma: float | None  # standard deviation in pixels of the crop
    solarize: bool


class CropParams(NamedTuple):
    """All random choices of one crop."""

    box: CropBox
    flip: bool
    color: ColorParams
    recolor: ColorParams | None = None  # of the same crop once more, with other colors

    @property
    def edges(self) -> tuple[int, int, int, int]:
        """Where the crop's left, top, right and bottom edge lie in the image, in pixels; if flipped, left > right."""
        left, right = self.box.left, self.box.left + self.box.width
        if self.flip:
            left, right = right, left
        return left, self.box.top, right, self.box.top + self.box.height


class BatchedColorParams(NamedTuple):
    """Flip and photometric parameters of many crops: one tensor per parameter, on the CPU."""

    flip: Bool[Tensor, "*shape"]
    jitter: Float[Tensor, "*shape 4"]  # brightness, contrast and saturation factors, hue shift in levels of 8 bits
    jitter_order: Int8[Tensor, "*shape 4"]  # operations from first to last; -1 everywhere: no jitter
    grayscale: Bool[Tensor, "*shape"]
    blur_sigma: Float[Tensor, "*shape"]  # 0: no blur
    solarize: Bool[Tensor, "*shape"]

    @classmethod
    def allocate(cls, *shape: int) -> "BatchedColorParams":
        return cls(
            flip=torch.empty(shape, dtype=torch.bool),
            jitter=torch.empty(*shape, len(JITTER_OPS)),
            jitter_order=torch.empty(*shape, len(JITTER_OPS), dtype=torch.int8),
            grayscale=torch.empty(shape, dtype=torch.bool),
            blur_sigma=torch.empty(shape),
            solarize=torch.empty(shape, dtype=torch.bool),
        )

    @classmethod
    def stack(cls, crops: Sequence[CropParams]) -> "BatchedColorParams":
        batch = cls.allocate(len(crops))
        batch.write(crops)
        return batch

    def write(self, crops: Sequence[CropParams]) -> None:
        """Set a batch of shape [len(crops)] in place."""
        jitters = [crop.color.jitter for crop in crops]
        # Through numpy: a fraction of what as many small tensors cost.
        self.flip.numpy()[:] = [crop.flip for crop in crops]
        self.jitter.numpy()[:] = [_NO_JITTER if jitter is None else jitter.by_op for jitter in jitters]
        self.jitter_order.numpy()[:] = [_NO_ORDER if jitter is None else jitter.order for jitter in jitters]
        self.grayscale.numpy()[:] = [crop.color.grayscale for crop in crops]
        self.blur_sigma.numpy()[:] = [crop.color.blur_sigma or 0.0 for crop in crops]
        self.solarize.numpy()[:] = [crop.color.solarize for crop in crops]

    def map(self, function: Callable[[Tensor], Tensor]) -> "BatchedColorParams":
        return BatchedColorParams(*map(function, self))


def sample_color_params(
    rng: RandomSource, config: CropsConfig, kind: Literal[0, 1, 2], pixels: PixelFormat = RGB_8
) -> ColorParams:
    """`kind`: 0 for the first global crop, 1 for the other global crops, 2 for local crops."""
    return ColorParams(
        jitter=_sample_jitter(rng, config, pixels) if rng.random() < config.color_jitter_prob else None,
        grayscale=rng.random() < config.grayscale_prob and pixels.is_rgb,
        blur_sigma=uniform(rng, *config.blur_sigma) if rng.random() < config.blur_prob[kind] else None,
        solarize=kind == 1 and rng.random() < config.solarize_prob,
    )


def _sample_jitter(rng: RandomSource, config: CropsConfig, pixels: PixelFormat) -> JitterParams:
    brightness, contrast, saturation, hue = config.color_jitter
    jitter = JitterParams(
        uniform(rng, max(0, 1 - brightness), 1 + brightness),
        uniform(rng, max(0, 1 - contrast), 1 + contrast),
        uniform(rng, max(0, 1 - saturation), 1 + saturation),
        uniform(rng, -hue, hue),
        tuple(sorted(JITTER_OPS, key=[rng.random() for _ in JITTER_OPS].__getitem__)),
    )
    if pixels.is_rgb:
        return jitter
    gain = config.channel_gain
    return jitter._replace(
        order=tuple(op for op in jitter.order if op in (BRIGHTNESS, CONTRAST)),
        gains=tuple(uniform(rng, 1 - gain, 1 + gain) for _ in range(pixels.num_channels)),
    )
