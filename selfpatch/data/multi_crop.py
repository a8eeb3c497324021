"""DINO's multi-crop augmentation on 8-bit images: several large and small random crops of one image.

First the random numbers of a crop are drawn (`draw`), then they are applied: geometry (`cut`: crop, resize, flip) and
light (`relight`: colour jitter, grey, blur, solarize). Equal parameters give what the plain Pillow and torchvision
pipeline gives to within 1/255 on average, about five times as fast: resizing is torch's 8-bit antialiased bicubic, and
light is weighted sums, one HSV round trip and one separable filter (benchmarks/augmentation.py).
"""

import math
from typing import Literal, NamedTuple

import cv2
import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn.functional import interpolate

from selfpatch.config import CropsConfig, rows_columns

Image = UInt8[np.ndarray, "H W 3"]

# How much wider or narrower than the crop's own shape a box may be, as torchvision has it.
_MAX_STRETCH = 4 / 3
GREY_WEIGHTS = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R 601-2, Pillow's "L"
# The four changes of colour jitter, by their places in `Jitter`.
BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
# Numbers that describe the light of a crop, without its blur kernel: four factors, their order, three yes or no.
NUM_LIGHT_NUMBERS = 11
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


class Light(NamedTuple):
    """What happens to the colours of a crop."""

    jitter: Jitter | None
    grey: bool
    blur_radius: float | None  # standard deviation in pixels of the crop
    solarize: bool


class CropParameters(NamedTuple):
    """All random choices of one crop."""

    box: Box
    flip: bool
    light: Light


class Crops(NamedTuple):
    """The crops of one image, RGB, not normalised."""

    global_crops: UInt8[Tensor, "V 3 H W"]
    local_crops: UInt8[Tensor, "U 3 R S"] | None
    upscaled: bool  # the image is smaller than a global crop
    # What is still to be done to their colours (`light_numbers`); None: nothing.
    global_lights: Float[Tensor, "V F"] | None = None
    local_lights: Float[Tensor, "U F"] | None = None


class MultiCrop:
    """All crops of one image: `multi_crop(image, rng)`.

    Args:
        relights: change colours here; else crops come with the numbers that `device_light.relight_batch` does it by.
    """

    def __init__(self, config: CropsConfig, *, relights: bool = True):
        self.config = config
        self.relights = relights
        self.global_size = rows_columns(config.global_size)
        self.local_size = rows_columns(config.local_size)

    def __call__(self, image: Image, rng: np.random.Generator) -> Crops:
        """A pure function of the image and of the generator's state."""
        rows, columns = image.shape[:2]
        global_parameters, local_parameters = self.draw(rng, rows, columns)
        global_crops, global_lights = self._crops(image, global_parameters, self.global_size)
        local_crops, local_lights = (
            self._crops(image, local_parameters, self.local_size) if local_parameters else (None, None)
        )
        return Crops(
            global_crops,
            local_crops,
            upscaled=rows < self.global_size[0] or columns < self.global_size[1],
            global_lights=global_lights,
            local_lights=local_lights,
        )

    def _crops(
        self, image: Image, parameters: list[CropParameters], size: tuple[int, int]
    ) -> tuple[UInt8[Tensor, "V 3 R S"], Float[Tensor, "V F"] | None]:
        if self.relights:
            return _stack([apply(image, crop, size) for crop in parameters]), None
        num_taps = len(blur_kernel(self.config.blur_radius[1]))
        lights = np.stack([light_numbers(crop.light, num_taps) for crop in parameters])
        return _stack([cut(image, crop.box, crop.flip, size) for crop in parameters]), torch.from_numpy(lights)

    def draw(
        self, rng: np.random.Generator, rows: int, columns: int
    ) -> tuple[list[CropParameters], list[CropParameters]]:
        """The parameters of the global and of the local crops of an image of that size."""
        config = self.config
        global_ratio = self.global_size[1] / self.global_size[0]
        local_ratio = self.local_size[1] / self.local_size[0]

        def crop(kind: Literal[0, 1, 2], scale: tuple[float, float], ratio: float) -> CropParameters:
            box = draw_box(rng, rows, columns, scale, ratio)
            return CropParameters(box, rng.random() < config.flip_prob, draw_light(rng, config, kind))

        return (
            [crop(0 if i == 0 else 1, config.global_scale, global_ratio) for i in range(config.num_global)],
            [crop(2, config.local_scale, local_ratio) for _ in range(config.num_local)],
        )


# 1. Random choices


def draw_box(rng: np.random.Generator, rows: int, columns: int, scale: tuple[float, float], ratio: float) -> Box:
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
            return Box(int(rng.integers(rows - height + 1)), int(rng.integers(columns - width + 1)), height, width)
    height = min(rows, max(1, round(columns / ratio * _MAX_STRETCH)))
    width = min(columns, max(1, round(rows * ratio * _MAX_STRETCH)))
    return Box((rows - height) // 2, (columns - width) // 2, height, width)


def draw_light(rng: np.random.Generator, config: CropsConfig, kind: Literal[0, 1, 2]) -> Light:
    """`kind`: 0 for the first global crop, 1 for the other global crops, 2 for local crops."""
    return Light(
        jitter=_draw_jitter(rng, config) if rng.random() < config.jitter_prob else None,
        grey=rng.random() < config.grey_prob,
        blur_radius=_uniform(rng, *config.blur_radius) if rng.random() < config.blur_prob[kind] else None,
        solarize=kind == 1 and rng.random() < config.solarize_prob,
    )


def _draw_jitter(rng: np.random.Generator, config: CropsConfig) -> Jitter:
    brightness, contrast, saturation, hue = config.jitter
    return Jitter(
        _uniform(rng, max(0, 1 - brightness), 1 + brightness),
        _uniform(rng, max(0, 1 - contrast), 1 + contrast),
        _uniform(rng, max(0, 1 - saturation), 1 + saturation),
        _uniform(rng, -hue, hue),
        tuple(rng.permutation(4).tolist()),
    )


def _uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return low + (high - low) * rng.random()


# 2. Geometry


def apply(image: Image, parameters: CropParameters, size: tuple[int, int]) -> UInt8[np.ndarray, "R S 3"]:
    """One crop of `size` (rows, columns)."""
    return relight(cut(image, parameters.box, parameters.flip, size), parameters.light)


def cut(image: Image, box: Box, flip: bool, size: tuple[int, int]) -> UInt8[np.ndarray, "R S 3"]:
    """Crop, resize (bicubic, antialiased when it shrinks, as Pillow) and mirror left to right."""
    part = image[box.top : box.top + box.height, box.left : box.left + box.width]
    # Batch first, then permute: torch sees that channels come last and keeps them there, which saves a slow copy.
    channels_last = torch.from_numpy(part)[None].permute(0, 3, 1, 2)
    resized = interpolate(channels_last, size, mode="bicubic", antialias=True).permute(0, 2, 3, 1)[0].numpy()
    return cv2.flip(resized, 1) if flip else resized


# 3. Light


def relight(crop: Image, light: Light) -> Image:
    if light.jitter is not None:
        crop = jitter_colors(crop, light.jitter)
    if light.grey:
        crop = _grey(crop)
    if light.blur_radius is not None:
        kernel = blur_kernel(light.blur_radius)
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
            mean = round(float(np.dot(cv2.mean(crop)[:3], GREY_WEIGHTS)))
            crop = _blend(crop, crop, jitter.contrast, 0.0, offset=mean * (1 - jitter.contrast))
        elif change == SATURATION:
            crop = _blend(crop, _grey(crop), jitter.saturation, 1 - jitter.saturation)
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


def _grey(crop: Image) -> Image:
    return cv2.cvtColor(cv2.cvtColor(crop, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)


def blur_kernel(radius: float) -> Float[np.ndarray, "taps"]:
    """Pillow's Gaussian blur in one dimension: three box filters in a row, of variance radius**2 / 3 each.

    A box has weight 1 at -n..n and w < 1 at the two ends beyond. Its variance
        (n (n+1) (2n+1) / 3 + 2 w (n+1)**2) / (2n + 1 + 2w)
    solved for w gives the line below; n is the largest number that leaves w >= 0. Unlike a sampled Gaussian it has the
    right variance however small the radius.
    """
    variance = radius**2 / 3
    n = int((math.sqrt(12 * variance + 1) - 1) / 2)
    w = (2 * n + 1) * (3 * variance - n * (n + 1)) / (6 * ((n + 1) ** 2 - variance))
    box = np.array([w] + [1.0] * (2 * n + 1) + [w])
    kernel = np.convolve(np.convolve(box, box), box)
    return (kernel / kernel.sum()).astype(np.float32)


def light_numbers(light: Light, num_taps: int) -> Float[np.ndarray, "F"]:
    """A light as numbers: four factors, their order (-1: no jitter), grey, blur and solarize (0 or 1), blur kernel.

    The hue's factor is in levels, as it is rounded here.
    """
    numbers = np.zeros(NUM_LIGHT_NUMBERS + num_taps, np.float32)
    numbers[4:8] = -1
    if light.jitter is not None:
        *numbers[:4], numbers[4:8] = light.jitter
        numbers[HUE] = _hue_levels(light.jitter)
    numbers[8:NUM_LIGHT_NUMBERS] = light.grey, light.blur_radius is not None, light.solarize
    if light.blur_radius is not None:
        kernel = blur_kernel(light.blur_radius)
        start = NUM_LIGHT_NUMBERS + (num_taps - len(kernel)) // 2
        numbers[start : start + len(kernel)] = kernel
    return numbers


# 4. To the model


def normalize(
    crops: UInt8[Tensor, "*shape 3 H W"], mean: tuple[float, float, float], std: tuple[float, float, float]
) -> Float[Tensor, "*shape 3 H W"]:
    """8-bit RGB to float32 with `mean` and `std` (of values in [0, 1]) taken out, on the device the crops are on."""
    mean_levels = 255 * torch.tensor(mean, device=crops.device)[:, None, None]
    std_levels = 255 * torch.tensor(std, device=crops.device)[:, None, None]
    return crops.float().sub_(mean_levels).div_(std_levels)


def _stack(crops: list[Image]) -> UInt8[Tensor, "V 3 H W"]:
    return torch.from_numpy(np.array([cv2.split(crop) for crop in crops]))
