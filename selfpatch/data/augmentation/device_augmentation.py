"""Flip, colour jitter, grey, blur and solarize for batches of crops, on their device: what `apply` ends with.

The random choices are made by the workers, from the sample's own random numbers, and come along as rows of numbers. So
crops do not depend on where they are relit, but for rounding.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from selfpatch.data.augmentation.multi_crop import BRIGHTNESS, CONTRAST, GRAY_WEIGHTS, HUE, SATURATION, blur_kernels

# Levels changed at a time: what is held meanwhile is a few times 64 MiB, however large the batch.
CHUNK_SIZE = 2**24
# Of a turn of hue: OpenCV has 256 on the way to HSV in 8 bits, and 255 on the way back.
HUE_LEVELS, HUE_LEVELS_BACK = 256, 255

Levels = Float[Tensor, "b 3 H W"]  # whole numbers from 0 to 255, at every step


def apply_color_batch(
    crops: UInt8[Tensor, "*shape 3 H W"], lights: Float[Tensor, "*shape F"]
) -> UInt8[Tensor, "*shape 3 H W"]:
    """Flip every crop and change its colours as its row of `lights` says (multi_crop.pack_color_params).

    Args:
        lights: on the CPU, so that which crops are concerned is known without waiting for the device.
    """
    flat, rows = crops.flatten(0, -4), lights.flatten(0, -2)
    size = max(1, CHUNK_SIZE // flat[0].numel())
    parts = [
        _apply_color(chunk.to(torch.float32, memory_format=torch.contiguous_format), row).to(torch.uint8)
        for chunk, row in zip(flat.split(size), rows.split(size), strict=True)
    ]
    return torch.cat(parts).view_as(crops)


def _apply_color(x: Levels, lights: Float[Tensor, "b F"]) -> Levels:
    flipped, factors, order = lights[:, 0], lights[:, 1:5], lights[:, 5:9]
    gray, radius, solarized = lights[:, 9:].unbind(dim=1)
    kernels = torch.from_numpy(blur_kernels(radius.double().numpy()))
    changes = {BRIGHTNESS: _brightness, CONTRAST: _contrast, SATURATION: _saturation, HUE: _hue}
    _change(x, flipped > 0, lambda part, _: part.flip(-1), factors)
    for place in range(4):
        for number, change in changes.items():  # crops have orders of their own; without jitter it is all -1
            _change(x, order[:, place] == number, change, factors[:, number])
    _change(x, gray > 0, lambda part, _: _gray(part).expand_as(part), factors)
    _change(x, radius > 0, _blur, kernels)
    _change(x, solarized > 0, lambda part, _: torch.where(part < 128, part, 255 - part), factors)
    return x


def _change(
    x: Levels, concerned: Bool[Tensor, " b"], change: Callable[[Levels, Tensor], Tensor], arguments: Tensor
) -> None:
    """Replace the crops concerned, in place. `change` is given them and their arguments."""
    places = concerned.nonzero().squeeze(1)
    if len(places):
        on_device = places.to(x.device, non_blocking=True)
        x[on_device] = change(x[on_device], arguments[places].to(x.device, non_blocking=True))


def _brightness(x: Levels, factor: Float[Tensor, " b"]) -> Levels:
    return _cut_off(x * _each(factor))


def _contrast(x: Levels, factor: Float[Tensor, " b"]) -> Levels:
    mean = (x.mean(dim=(2, 3)) @ _weights(x)).round()
    return _cut_off(x * _each(factor) + _each(mean * (1 - factor)))


def _saturation(x: Levels, factor: Float[Tensor, " b"]) -> Levels:
    return _cut_off(x * _each(factor) + _gray(x) * _each(1 - factor))


def _hue(x: Levels, shift: Float[Tensor, " b"]) -> Levels:
    """As OpenCV goes to HSV and back, in 8 bits."""
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
    return torch.einsum("bchw,c->bhw", x, _weights(x)).add_(0.5).floor_().unsqueeze(1)


def _blur(x: Levels, kernels: Float[Tensor, "b T"]) -> Levels:
    """A separable filter for every crop, its border continued by the outermost pixels."""
    b, channels, reach = len(x), x.shape[1], kernels.shape[1] // 2
    kernels = kernels.repeat_interleave(channels, dim=0)[:, None]  # [b * 3, 1, T]: a group a channel
    planes = F.pad(x, (reach, reach, reach, reach), mode="replicate").flatten(0, 1)[None]
    planes = F.conv2d(planes, kernels[:, :, None, :], groups=b * channels)
    planes = F.conv2d(planes, kernels[:, :, :, None], groups=b * channels)
    return planes[0].unflatten(0, (b, channels)).round()


def _cut_off(x: Levels) -> Levels:
    return x.add_(1e-3).floor_().clamp_(0, 255)


def _each(numbers: Float[Tensor, " b"]) -> Float[Tensor, "b 1 1 1"]:
    return numbers[:, None, None, None]


def _weights(x: Levels) -> Float[Tensor, " 3"]:
    return torch.tensor(GRAY_WEIGHTS, device=x.device)
