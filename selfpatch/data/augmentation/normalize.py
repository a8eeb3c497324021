"""Crops to normalized floats, on the device they are on."""

import functools

import torch
from jaxtyping import Float, Real
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes


def normalize(
    crops: Real[Tensor, "*shape C H W"], mean: tuple[float, ...], std: tuple[float, ...]
) -> Float[Tensor, "*shape C H W"]:
    """(crops - mean) / std in float32, channels first in memory whatever their order before.

    Args:
        crops: levels from 0 to 255, or values in [0, 1] as floating point.
        mean, std: per channel, of values in [0, 1].
    """
    white = 1 if crops.is_floating_point() else 255
    mean_levels = white * device_constant(mean, crops.device)[:, None, None]
    std_levels = white * device_constant(std, crops.device)[:, None, None]
    # Crops of float32 may be asked for again.
    levels = crops.to(torch.float32, memory_format=torch.contiguous_format, copy=crops.is_floating_point())
    return levels.sub_(mean_levels).div_(std_levels)


@functools.cache
def device_constant(values: tuple[float, ...], device: torch.device) -> Float[Tensor, " n"]:
    """A float32 tensor made once per device: copying Python numbers to a GPU makes the host wait for it."""
    # An ordinary tensor, even when it is first asked for where tensors are fake or belong to inference mode.
    with _disable_current_modes(), torch.inference_mode(False):
        return torch.tensor(values, device=device)
