"""DINO's multi-crop augmentation on 8-bit images: several large and small random crops of one image.

First the random numbers of a crop are drawn (`draw`), then they are applied: geometry (`cut`: crop, resize, flip) and
light (`apply_color`: colour jitter, grey, blur, solarize). Equal parameters give what the plain Pillow and torchvision
pipeline gives to within 1/255 on average, about five times as fast: resizing is torch's 8-bit antialiased bicubic, and
light is weighted sums, one HSV round trip and one separable filter (benchmarks/augmentation.py).
"""

import math
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import cv2
import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from selfpatch.config import CropsConfig, rows_columns

Image = UInt8[np.ndarray, "H W 3"]

# How much wider or narrower than the crop's own shape a box may be, as torchvision has it.
_MAX_STRETCH = 4 / 3
GRAY_WEIGHTS = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R 601-2, Pillow's "L"
# The four changes of colour jitter, by their places in `Jitter`.
BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
# Numbers that describe the flip and the light of a crop (`pack_color_params`).
NUM_COLOR_PARAMS = 12
_SOLARIZED = np.array([level if level < 128 else 255 - level for level in range(256)], np.uint8)


class Box(NamedTuple):
    """A part of an image, in pixels."""

    top: int
    left: int
    height: int
    width: int


class Jitter(NamedTuple):
    """Factors of brightness, contrast and saturation (1: unchanged), hue shift in turns, and the order of the four."""

    brightness: float
    contrast: float
    saturation: float
    hue: float
    order: tuple[int, ...]


class ColorParams(NamedTuple):
    """What happens to the colours of a crop."""

    jitter: Jitter | None
    gray: bool
    blur_sigma: float | None  # standard deviation in pixels of the crop
    solarize: bool


class CropParameters(NamedTuple):
    """All random choices of one crop."""

    box: Box
    flip: bool
    light: ColorParams


class Crops(NamedTuple):
    """The crops of a number of images, RGB, not normalised, and what is still to be done to them."""

    global_crops: UInt8[Tensor, "V B 3 H W"]
    local_crops: UInt8[Tensor, "U B 3 R S"] | None
    # Rows as `pack_color_params` makes them, for `device_light.apply_color_batch`; None: nothing is left to do.
    global_color: Float[Tensor, "V B F"] | None = None
    local_color: Float[Tensor, "U B F"] | None = None

    @property
    def num_images(self) -> int:
        return self.global_crops.shape[1]

    def map(self, function: Callable[[Tensor], Tensor]) -> "Crops":
        return Crops(*(None if part is None else function(part) for part in self))

    def slice_images(self, start: int, stop: int) -> "Crops":
        """Those of some of the images, in the same memory."""
        return self.map(lambda part: part[:, start:stop])

    def copy_(self, crops: "Crops") -> None:
        for own, other in zip(self, crops, strict=True):
            if own is not None:
                own.copy_(other)


class MultiCrop:
    """All crops of one image: `multi_crop(image, rng)`.

    Args:
        color_in_worker: flip and change colours here; else crops come with the numbers by which
            `apply_color_batch` does it.
    """

    def __init__(self, config: CropsConfig, *, color_in_worker: bool = True):
        self.config = config
        self.color_in_worker = color_in_worker
        self.global_size = rows_columns(config.global_size)
        self.local_size = rows_columns(config.local_size)

    def __call__(self, image: Image, rng: np.random.Generator) -> Crops:
        """A pure function of the image and of the generator's state."""
        crops = self.empty(1)
        self.write(image, rng, crops)
        return crops

    def write(self, image: Image, rng: np.random.Generator, place: Crops) -> None:
        """Make the crops in their place: what `empty(1)` gives, or one image's part of such memory."""
        global_parameters, local_parameters = self.draw(rng, *image.shape[:2])
        self._write(image, global_parameters, place.global_crops, place.global_color)
        if place.local_crops is not None:
            self._write(image, local_parameters, place.local_crops, place.local_color)

    def empty(self, num_images: int, *, pin_memory: bool = False) -> Crops:
        """Memory for the crops of so many images, where channels come last: as images are decoded and resized."""

        def crops(count: int, size: tuple[int, int]) -> Tensor:
            crops = torch.empty(count, num_images, *size, 3, dtype=torch.uint8, pin_memory=pin_memory)
            return crops.permute(0, 1, 4, 2, 3)

        def lights(count: int) -> Tensor | None:
            return None if self.color_in_worker else torch.empty(count, num_images, NUM_COLOR_PARAMS)

        num_global, num_local = self.config.num_global, self.config.num_local
        return Crops(
            crops(num_global, self.global_size),
            crops(num_local, self.local_size) if num_local else None,
            lights(num_global),
            lights(num_local) if num_local else None,
        )

    def is_smaller_than_crop(self, image: Image) -> bool:
        """Whether the image is smaller than a global crop."""
        return image.shape[0] < self.global_size[0] or image.shape[1] < self.global_size[1]

    @torch.inference_mode()  # a twentieth of the time of so small tensors
    def _write(
        self,
        image: Image,
        parameters: list[CropParameters],
        crops: UInt8[Tensor, "V 1 3 R S"],
        lights: Float[Tensor, "V 1 F"] | None,
    ) -> None:
        if lights is None:
            for crop, place in zip(parameters, crops[:, 0].permute(0, 2, 3, 1).numpy(), strict=True):
                place[:] = apply(image, crop, place.shape[:2])
        else:
            for crop, place in zip(parameters, crops.unbind(), strict=True):
                _resize(image, crop.box, place)
            lights[:, 0] = torch.tensor([pack_color_params(crop) for crop in parameters])

    def draw(
        self, rng: np.random.Generator, rows: int, columns: int
    ) -> tuple[list[CropParameters], list[CropParameters]]:
        """The parameters of the global and of the local crops of an image of that size."""
        config, numbers = self.config, BufferedRandom(rng)
        global_ratio = self.global_size[1] / self.global_size[0]
        local_ratio = self.local_size[1] / self.local_size[0]

        def crop(kind: Literal[0, 1, 2], scale: tuple[float, float], ratio: float) -> CropParameters:
            box = sample_crop_box(numbers, rows, columns, scale, ratio)
            return CropParameters(box, numbers.random() < config.hflip_prob, sample_color_params(numbers, config, kind))

        return (
            [crop(0 if i == 0 else 1, config.global_scale, global_ratio) for i in range(config.num_global)],
            [crop(2, config.local_scale, local_ratio) for _ in range(config.num_local)],
        )


# 1. Random choices


class BufferedRandom:
    """Random numbers between 0 and 1 from a generator of numpy's, which calls cost more time than numbers do."""

    def __init__(self, rng: np.random.Generator):
        def numbers() -> Iterator[float]:
            while True:
                yield from rng.random(256).tolist()

        self.random: Callable[[], float] = numbers().__next__


# All that is asked of one is `random()`.
Uniform = np.random.Generator | BufferedRandom


def sample_crop_box(rng: Uniform, rows: int, columns: int, scale: tuple[float, float], ratio: float) -> Box:
    """A random box with a share of the area within `scale`, its width / height at most 4/3 away from `ratio`.

    As torchvision's RandomResizedCrop: ten tries to find one inside the image, then the largest central box. There the
    ratio is about 1; here it is about that of the crop, which is the same for square crops, so that no shape is
    stretched by more than 4/3.
    """
    max_log_stretch = math.log(_MAX_STRETCH)
    for _ in range(10):
        area = rows * columns * _uniform(rng, *scale)
        box_ratio = ratio * math.exp(_uniform(rng, -max_log_stretch, max_log_stretch))
        width, height = round(math.sqrt(area * box_ratio)), round(math.sqrt(area / box_ratio))
        if 0 < width <= columns and 0 < height <= rows:
            top, left = int(rng.random() * (rows - height + 1)), int(rng.random() * (columns - width + 1))
            return Box(top, left, height, width)
    height = min(rows, max(1, round(columns / ratio * _MAX_STRETCH)))
    width = min(columns, max(1, round(rows * ratio * _MAX_STRETCH)))
    return Box((rows - height) // 2, (columns - width) // 2, height, width)


def sample_color_params(rng: Uniform, config: CropsConfig, kind: Literal[0, 1, 2]) -> ColorParams:
    """`kind`: 0 for the first global crop, 1 for the other global crops, 2 for local crops."""
    return ColorParams(
        jitter=_draw_jitter(rng, config) if rng.random() < config.color_jitter_prob else None,
        gray=rng.random() < config.grayscale_prob,
        blur_sigma=_uniform(rng, *config.blur_sigma) if rng.random() < config.blur_prob[kind] else None,
        solarize=kind == 1 and rng.random() < config.solarize_prob,
    )


def _draw_jitter(rng: Uniform, config: CropsConfig) -> Jitter:
    brightness, contrast, saturation, hue = config.color_jitter
    return Jitter(
        _uniform(rng, max(0, 1 - brightness), 1 + brightness),
        _uniform(rng, max(0, 1 - contrast), 1 + contrast),
        _uniform(rng, max(0, 1 - saturation), 1 + saturation),
        _uniform(rng, -hue, hue),
        tuple(sorted(range(4), key=[rng.random() for _ in range(4)].__getitem__)),
    )


def _uniform(rng: Uniform, low: float, high: float) -> float:
    return low + (high - low) * rng.random()


# 2. Geometry


def apply(image: Image, parameters: CropParameters, size: tuple[int, int]) -> UInt8[np.ndarray, "R S 3"]:
    """One crop of `size` (rows, columns)."""
    return apply_color(cut(image, parameters.box, parameters.flip, size), parameters.light)


def cut(image: Image, box: Box, flip: bool, size: tuple[int, int]) -> UInt8[np.ndarray, "R S 3"]:
    """Crop, resize (bicubic, antialiased when it shrinks, as Pillow) and mirror left to right."""
    resized = np.empty((*size, 3), np.uint8)
    _resize(image, box, _as_batch(resized))
    return cv2.flip(resized, 1) if flip else resized


def _resize(image: Image, box: Box, out: UInt8[Tensor, "1 3 R S"]) -> None:
    """What `interpolate(mode="bicubic", antialias=True)` does, which cannot be told where its result should go."""
    part = _as_batch(image[box.top : box.top + box.height, box.left : box.left + box.width])
    torch._C._nn._upsample_bicubic2d_aa(part, out.shape[-2:], False, None, None, out=out)


def _as_batch(image: Image) -> UInt8[Tensor, "1 3 H W"]:
    # Batch first, then permute: torch sees that channels come last and keeps them there, which saves a slow copy.
    return torch.from_numpy(image)[None].permute(0, 3, 1, 2)


# 3. Light


def apply_color(crop: Image, light: ColorParams) -> Image:
    if light.jitter is not None:
        crop = jitter_colors(crop, light.jitter)
    if light.gray:
        crop = _gray(crop)
    if light.blur_sigma is not None:
        kernel = blur_kernel(light.blur_sigma)
        crop = cv2.sepFilter2D(crop, -1, kernel, kernel, borderType=cv2.BORDER_REPLICATE)
    if light.solarize:
        crop = cv2.LUT(crop, _SOLARIZED)
    return crop


def jitter_colors(crop: Image, jitter: Jitter) -> Image:
    """Pillow's enhancers and torchvision's hue shift, one after the other in the drawn order."""
    for change in jitter.order:
        if change == BRIGHTNESS:
            crop = _blend(crop, crop, jitter.brightness, 0.0)
        elif change == CONTRAST:
            mean = round(float(np.dot(cv2.mean(crop)[:3], GRAY_WEIGHTS)))
            crop = _blend(crop, crop, jitter.contrast, 0.0, offset=mean * (1 - jitter.contrast))
        elif change == SATURATION:
            crop = _blend(crop, _gray(crop), jitter.saturation, 1 - jitter.saturation)
        else:
            hsv = cv2.cvtColor(crop, cv2.COLOR_RGB2HSV_FULL)  # FULL: a turn is 256 steps
            hue = cv2.extractChannel(hsv, 0) + np.uint8(_hue_levels(jitter) % 256)  # goes round at 256
            crop = cv2.cvtColor(cv2.insertChannel(hue, hsv, 0), cv2.COLOR_HSV2RGB_FULL)
    return crop


def _hue_levels(jitter: Jitter) -> int:
    return int(jitter.hue * 255)  # as torchvision, though its hues have 256 levels


def _blend(a: Image, b: Image, a_weight: float, b_weight: float, offset: float = 0.0) -> Image:
    """a * a_weight + b * b_weight + offset, within 0 to 255, cut off to whole levels as Pillow does."""
    # OpenCV rounds. The thousandth keeps results that are whole numbers already.
    return cv2.addWeighted(a, a_weight, b, b_weight, offset - 0.499)


def _gray(crop: Image) -> Image:
    return cv2.cvtColor(cv2.cvtColor(crop, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)


def blur_kernel(radius: float) -> Float[np.ndarray, "taps"]:
    """Pillow's Gaussian blur in one dimension: three box filters in a row, of variance radius**2 / 3 each.

    Unlike a sampled Gaussian it has the right variance however small the radius.
    """
    n, w = _box(radius)
    box = np.array([w] + [1.0] * (2 * int(n) + 1) + [w])
    kernel = np.convolve(np.convolve(box, box), box)
    return (kernel / kernel.sum()).astype(np.float32)


def blur_kernels(radii: Float[np.ndarray, "b"]) -> Float[np.ndarray, "b taps"]:
    """Many at once, all as long as the longest."""
    n, w = _box(radii[:, None])
    reach = int(n.max()) + 1
    offsets = np.abs(np.arange(-reach, reach + 1))
    boxes = np.where(offsets <= n, 1.0, np.where(offsets == n + 1, w, 0.0))
    num_taps = 6 * reach + 1
    kernels = np.fft.irfft(np.fft.rfft(boxes, num_taps) ** 3, num_taps)
    return (kernels / kernels.sum(axis=1, keepdims=True)).astype(np.float32)


def _box(radius: Any) -> tuple[Any, Any]:
    """(n, w) of a box filter of variance radius**2 / 3, with weight 1 at -n..n and w < 1 at the two ends beyond.

    Its variance
        (n (n+1) (2n+1) / 3 + 2 w (n+1)**2) / (2n + 1 + 2w)
    solved for w gives the line below; n is the largest number that leaves w >= 0.
    """
    variance = radius**2 / 3
    n = ((12 * variance + 1) ** 0.5 - 1) / 2 // 1
    return n, (2 * n + 1) * (3 * variance - n * (n + 1)) / (6 * ((n + 1) ** 2 - variance))


def pack_color_params(crop: CropParameters) -> list[float]:
    """Flip, four factors of jitter, their order, grey, radius of the blur, solarize.

    Hue is in levels, as it is rounded here. Without jitter the order is -1, without blur its radius is 0.
    """
    light = crop.light
    if light.jitter is None:
        factors, order = (0.0, 0.0, 0.0, 0.0), (-1, -1, -1, -1)
    else:
        *factors, _, order = light.jitter
        factors.append(_hue_levels(light.jitter))
    return [crop.flip, *factors, *order, light.gray, light.blur_sigma or 0.0, light.solarize]


# 4. To the model


def normalize(
    crops: UInt8[Tensor, "*shape 3 H W"], mean: tuple[float, float, float], std: tuple[float, float, float]
) -> Float[Tensor, "*shape 3 H W"]:
    """8-bit RGB to float32 with `mean` and `std` (of values in [0, 1]) taken out, on the device the crops are on.

    Channels come first in memory then, wherever they came before.
    """
    mean_levels = 255 * torch.tensor(mean, device=crops.device)[:, None, None]
    std_levels = 255 * torch.tensor(std, device=crops.device)[:, None, None]
    return crops.to(torch.float32, memory_format=torch.contiguous_format).sub_(mean_levels).div_(std_levels)
