"""DINO's multi-crop augmentation: several large and small random crops of one image.

The parameters of a crop are sampled (`sample_params`), then applied: geometry (crop, resize, flip), then colors. Equal
parameters give what the plain Pillow and torchvision pipeline gives to within 1/255 on average, about five times as
fast (benchmarks/augmentation.py). Images of other channels or depths than 8-bit RGB go through the same steps.
"""

from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Real
from torch import Tensor

from selfpatch.config import RGB_8, CropsConfig, PixelFormat, rows_columns
from selfpatch.data.augmentation.color_augmentation import apply_color
from selfpatch.data.augmentation.crops import Crops
from selfpatch.data.augmentation.geometry import Image, resize_into, resized_crop, sample_crop_box
from selfpatch.data.augmentation.params import BatchedColorParams, CropParams, sample_color_params
from selfpatch.data.augmentation.random_source import BufferedRandom, RandomSource


class MultiCrop:
    """All crops of one image: `multi_crop(image, rng)`.

    Args:
        color_in_worker: flip and augment colors here; else crops come with the parameters by which
            `apply_color_batch` does it on the device, for which they are 8-bit RGB.
        recolor: make the global crops a second time, with colors of their own.
        boxes: say where crops lie in their image.
        pixels: the format of the images.
    """

    def __init__(
        self,
        config: CropsConfig,
        *,
        color_in_worker: bool = True,
        recolor: bool = False,
        boxes: bool = False,
        pixels: PixelFormat = RGB_8,
    ):
        assert color_in_worker or pixels.is_8_bit_rgb
        self.config = config
        self.pixels = pixels
        self.color_in_worker = color_in_worker
        self.recolor, self.boxes = recolor, boxes
        self.global_size = rows_columns(config.global_size)
        self.local_size = rows_columns(config.local_size)

    def __call__(self, image: Image, rng: np.random.Generator) -> Crops:
        """A pure function of the image and of the generator's state."""
        crops = self.allocate(1)
        self.write(image, rng, crops)
        return crops

    def write(self, image: Image, rng: np.random.Generator, out: Crops) -> None:
        """Write the crops of an image to memory from `allocate`, of one image or sliced to one."""
        global_params, local_params = self.sample_params(BufferedRandom(rng), *image.shape[:2])
        _write(image, global_params, out.global_crops, out.global_color, out.recolored_crops)
        if out.recolored_color is not None:
            _write_color([_recolored(crop) for crop in global_params], out.recolored_color)
        if out.local_crops is not None:
            _write(image, local_params, out.local_crops, out.local_color)
        for params, boxes in ((global_params, out.global_boxes), (local_params, out.local_boxes)):
            if boxes is not None:
                boxes.numpy()[:, 0] = [crop.edges for crop in params]

    def allocate(self, num_images: int, *, pin_memory: bool = False) -> Crops:
        """Uninitialized memory for the crops of so many images; channels come last in it, as in decoded images."""
        num_global, num_local = self.config.num_global, self.config.num_local

        num_channels, dtype = self.pixels.num_channels, getattr(torch, self.pixels.dtype)

        def crops(count: int, size: tuple[int, int]) -> Real[Tensor, "V B C H W"]:
            memory = torch.empty(count, num_images, *size, num_channels, dtype=dtype, pin_memory=pin_memory)
            return memory.permute(0, 1, 4, 2, 3)

        def color(count: int) -> BatchedColorParams | None:
            return None if self.color_in_worker else BatchedColorParams.allocate(count, num_images)

        def boxes(count: int) -> Float[Tensor, "V B 4"] | None:
            return torch.empty(count, num_images, 4) if self.boxes else None

        return Crops(
            crops(num_global, self.global_size),
            crops(num_local, self.local_size) if num_local else None,
            color(num_global),
            color(num_local) if num_local else None,
            recolored_crops=crops(num_global, self.global_size) if self.recolor and self.color_in_worker else None,
            recolored_color=color(num_global) if self.recolor else None,
            global_boxes=boxes(num_global),
            local_boxes=boxes(num_local) if num_local else None,
        )

    def is_smaller_than_crop(self, image: Image) -> bool:
        """True if the image is smaller than a global crop."""
        return image.shape[0] < self.global_size[0] or image.shape[1] < self.global_size[1]

    def sample_params(self, rng: RandomSource, rows: int, columns: int) -> tuple[list[CropParams], list[CropParams]]:
        """The parameters of the global and of the local crops of an image of that size."""
        config = self.config

        def sample(kind: Literal[0, 1, 2], scale: tuple[float, float], size: tuple[int, int]) -> CropParams:
            box = sample_crop_box(rng, rows, columns, scale, aspect_ratio=size[1] / size[0])
            flip = rng.random() < config.hflip_prob
            return CropParams(box, flip, sample_color_params(rng, config, kind, self.pixels))

        global_params = [
            sample(0 if i == 0 else 1, config.global_scale, self.global_size) for i in range(config.num_global)
        ]
        local_params = [sample(2, config.local_scale, self.local_size) for _ in range(config.num_local)]
        if self.recolor:  # last, so that all others are the same without
            global_params = [
                crop._replace(recolor=sample_color_params(rng, config, 0 if i == 0 else 1, self.pixels))
                for i, crop in enumerate(global_params)
            ]
        return global_params, local_params


def apply_crop(image: Image, params: CropParams, size: tuple[int, int]) -> Real[np.ndarray, "R S C"]:
    """One crop of `size` (rows, columns)."""
    return apply_color(resized_crop(image, params.box, params.flip, size), params.color)


def _recolored(params: CropParams) -> CropParams:
    assert params.recolor is not None
    return params._replace(color=params.recolor)


@torch.inference_mode()  # a twentieth of the time of so small tensors
def _write(
    image: Image,
    params: list[CropParams],
    crops: Real[Tensor, "V 1 C R S"],
    color: BatchedColorParams | None,
    recolored_crops: Real[Tensor, "V 1 C R S"] | None = None,
) -> None:
    if color is not None:
        for crop, out in zip(params, crops.unbind(), strict=True):
            resize_into(image, crop.box, out)
        _write_color(params, color)
        return
    for crop, out in zip(params, _channels_last(crops), strict=True):
        out[:] = apply_crop(image, crop, out.shape[:2])
    if recolored_crops is not None:
        for crop, out in zip(params, _channels_last(recolored_crops), strict=True):
            out[:] = apply_crop(image, _recolored(crop), out.shape[:2])


def _write_color(params: list[CropParams], color: BatchedColorParams) -> None:
    color.map(lambda part: part[:, 0]).write(params)


def _channels_last(crops: Real[Tensor, "V 1 C R S"]) -> Real[np.ndarray, "V R S C"]:
    return crops[:, 0].permute(0, 2, 3, 1).numpy()
