"""DINO's augmentation as torchvision and Pillow do it, one image at a time: ours must look like it."""

import numpy as np
from PIL import Image, ImageFilter, ImageOps
from torchvision import transforms
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as F

from selfpatch.config import IMAGENET_MEAN, IMAGENET_STD
from selfpatch.data.augmentation.params import CropParams, JitterParams

JITTER = (0.4, 0.4, 0.2, 0.1)


def plain_crop(image: np.ndarray, params: CropParams, size: tuple[int, int]) -> np.ndarray:
    """A crop with given parameters."""
    box, flip, color = params[:3]
    crop = F.resized_crop(Image.fromarray(image), *box, list(size), InterpolationMode.BICUBIC)
    if flip:
        crop = F.hflip(crop)
    if color.jitter is not None:
        crop = plain_jitter(crop, color.jitter)
    if color.grayscale:
        crop = F.to_grayscale(crop, num_output_channels=3)
    if color.blur_sigma is not None:
        crop = crop.filter(ImageFilter.GaussianBlur(color.blur_sigma))
    if color.solarize:
        crop = ImageOps.solarize(crop)
    return np.asarray(crop)


def plain_jitter(crop: Image.Image, jitter: JitterParams) -> Image.Image:
    changes = (
        lambda image: F.adjust_brightness(image, jitter.brightness),
        lambda image: F.adjust_contrast(image, jitter.contrast),
        lambda image: F.adjust_saturation(image, jitter.saturation),
        lambda image: F.adjust_hue(image, jitter.hue),
    )
    for change in jitter.order:
        crop = changes[change](crop)
    return crop


class PlainMultiCrop:
    """The whole pipeline with torchvision's own random numbers: normalised float crops, 2 of 224 and 8 of 96 pixels."""

    def __init__(self):
        flip_and_color = [
            transforms.RandomHorizontalFlip(0.5),
            transforms.RandomApply([transforms.ColorJitter(*JITTER)], p=0.8),
            transforms.RandomGrayscale(0.2),
        ]
        normalize = [transforms.ToTensor(), transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD)]

        def crop(size: int, scale: tuple[float, float], *last: object) -> transforms.Compose:
            resized_crop = transforms.RandomResizedCrop(size, scale, interpolation=InterpolationMode.BICUBIC)
            return transforms.Compose([resized_crop, *flip_and_color, *last, *normalize])

        first = crop(224, (0.25, 1.0), plain_blur(1.0))
        second = crop(224, (0.25, 1.0), plain_blur(0.1), transforms.RandomApply([ImageOps.solarize], p=0.2))
        local = crop(96, (0.05, 0.25), plain_blur(0.5))
        self.crops = [first, second] + 8 * [local]

    def __call__(self, image: Image.Image) -> list:
        return [crop(image) for crop in self.crops]


def plain_blur(probability: float) -> transforms.RandomApply:
    def blur(image: Image.Image) -> Image.Image:
        return image.filter(ImageFilter.GaussianBlur(np.random.uniform(0.1, 2.0)))

    return transforms.RandomApply([blur], p=probability)
