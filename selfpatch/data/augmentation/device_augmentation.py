"""Flip and color augmentation of batches of crops, on their device.

The parameters are sampled in the workers, from the sample's own random numbers, and come along with the crops. So crops
do not depend on where their colors are augmented, but for rounding.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from selfpatch.data.augmentation.blur_kernel import blur_kernels
from selfpatch.data.augmentation.color_augmentation import GRAY_WEIGHTS
from selfpatch.data.augmentation.normalize import device_constant
from selfpatch.data.augmentation.params import BRIGHTNESS, CONTRAST, HUE, SATURATION, BatchedColorParams

# Levels changed at a time: what is held meanwhile is a few times 64 MiB, however large the batch.
CHUNK_SIZE = 2**24
# Of a turn of hue: OpenCV has 256 on the way to HSV in 8 bits, and 255 on the way back.
HUE_LEVELS, HUE_LEVELS_BACK = 256, 255

Levels = Float[Tensor, "b 3 H W"]  # whole numbers from 0 to 255, at every step


def apply_color_batch(
    crops: UInt8[Tensor, "*shape 3 H W"], params: BatchedColorParams
) -> UInt8[Tensor, "*shape 3 H W"]:
    """Flip every crop and augment its colors by its own parameters, in the order of `color_augmentation.apply_color`.

    Args:
        params: of the crops' leading dimensions; on the CPU, so that selecting crops needs no device sync.
    """
    num_leading = crops.ndim - 3
    flat_crops, flat_params = crops.flatten(0, -4), params.map(lambda part: part.flatten(0, num_leading - 1))
    size = max(1, CHUNK_SIZE // flat_crops[0].numel())
    parts = []
    for start in range(0, len(flat_crops), size):
        chunk = flat_crops[start : start + size].to(torch.float32, memory_format=torch.contiguous_format)
        _augment(chunk, flat_params.map(lambda part, start=start: part[start : start + size]))
        parts.append(chunk.to(torch.uint8))
    return torch.cat(parts).view_as(crops)


def _augment(x: Levels, params: BatchedColorParams) -> None:
    """Change the crops in place."""
    jitter = params.jitter
    _change(x, params.flip, lambda part: part.flip(-1))
    for op in params.jitter_order.unbind(dim=1):  # first to last; crops have orders of their own
        _change(x, op == BRIGHTNESS, _brightness, jitter[:, BRIGHTNESS])
        _change(x, op == CONTRAST, _contrast, jitter[:, CONTRAST])
        _change(x, op == SATURATION, _saturation, jitter[:, SATURATION])
        _change(x, op == HUE, _hue, jitter[:, HUE])
    _change(x, params.grayscale, lambda part: _gray(part).expand_as(part))
    kernels = torch.from_numpy(blur_kernels(params.blur_sigma.double().numpy()))
    _change(x, params.blur_sigma > 0, _blur, kernels)
    _change(x, params.solarize, lambda part: torch.where(part < 128, part, 255 - part))


def _change(x: Levels, selected: Bool[Tensor, " b"], change: Callable[..., Levels], *arguments: Tensor) -> None:
    """Replace the selected crops by `change` of them and of their arguments, in place."""
    places = selected.nonzero().squeeze(1)
    if len(places):
        on_device = places.to(x.device, non_blocking=True)
        of_selected = (argument[places].to(x.device, non_blocking=True) for argument in arguments)
        x[on_device] = change(x[on_device], *of_selected)


def _brightness(x: Levels, factor: Float[Tensor, " b"]) -> Levels:
    return _truncate(x * _per_crop(factor))


def _contrast(x: Levels, factor: Float[Tensor, " b"]) -> Levels:
    mean = (x.mean(dim=(2, 3)) @ _gray_weights(x)).round()
    return _truncate(x * _per_crop(factor) + _per_crop(mean * (1 - factor)))


def _saturation(x: Levels, factor: Float[Tensor, " b"]) -> Levels:
    return _truncate(x * _per_crop(factor) + _gray(x) * _per_crop(1 - factor))


def _hue(x: Levels, shift: Float[Tensor, " b"]) -> Levels:
    """Shift the hue, to HSV and back in 8 bits as OpenCV does."""
    red, green, blue = x.unbind(dim=1)
    value, least = x.amax(dim=1), x.amin(dim=1)
    chroma = value - least
    sixth = torch.where(
        value == red,
        green - blue,
        torch.where(value == green, blue - red + 2 * chroma, red - green + 4 * chroma),
    ) / chroma.clamp(min=1)  # fmt: skip
    hue = (sixth * (HUE_LEVELS / 6)).add(0.5).floor()
    saturation = (255 * chroma / value.clamp(min=1)).round() / 255
    sixth = (hue + shift[:, None, None]).remainder(HUE_LEVELS) * (6 / HUE_LEVELS_BACK)
    # A channel is value * (1 - saturation * d): d is 0 within a sixth of its own hue, 1 beyond two sixths, and linear
    # between.
    away = torch.stack([sixth - own for own in (0, 2, 4)], dim=1).add(3).remainder(6).sub(3).abs()
    return (value[:, None] * (1 - saturation[:, None] * (away - 1).clamp(0, 1))).round()


def _gray(x: Levels) -> Float[Tensor, "b 1 H W"]:
    return torch.einsum("bchw,c->bhw", x, _gray_weights(x)).add_(0.5).floor_().unsqueeze(1)


def _blur(x: Levels, kernels: Float[Tensor, "b T"]) -> Levels:
    """Filter every crop by its own separable kernel, its border continued by the outermost pixels."""
    b, channels, reach = len(x), x.shape[1], kernels.shape[1] // 2
    kernels = kernels.repeat_interleave(channels, dim=0)[:, None]  # [b * 3, 1, T]: one group per channel
    planes = F.pad(x, (reach, reach, reach, reach), mode="replicate").flatten(0, 1)[None]
    planes = F.conv2d(planes, kernels[:, :, None, :], groups=b * channels)
    planes = F.conv2d(planes, kernels[:, :, :, None], groups=b * channels)
    return planes[0].unflatten(0, (b, channels)).round()


def _truncate(x: Levels) -> Levels:
    """Whole levels, rounded down as Pillow does; the thousandth keeps results that are whole numbers already."""
    return x.add_(1e-3).floor_().clamp_(0, 255)


def _per_crop(numbers: Float[Tensor, " b"]) -> Float[Tensor, "b 1 1 1"]:
    return numbers[:, None, None, None]


def _gray_weights(x: Levels) -> Float[Tensor, " 3"]:
    return device_constant(GRAY_WEIGHTS, x.device)
