"""The device a command runs on, and how many processes are worth starting."""

import torch

from selfpatch.config import RGB_8, PixelFormat
from selfpatch.config.processes import find_place
from selfpatch.data.cores import num_cores
from selfpatch.errors import UserError


def find_device(name: str) -> torch.device:
    """A device by torch's name; "auto" is the GPU if there is one, else the CPU.

    Raises:
        UserError: no such device on this machine; those that are there are given.
    """
    available = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    if torch.backends.mps.is_available():
        available.append("mps")
    if name == "auto":
        return torch.device(available[1] if len(available) > 1 else "cpu")
    full_name = "cuda:0" if name == "cuda" else name
    if full_name not in available:
        raise UserError(f"there is no device {name!r} here; there is: {', '.join(available)} (or auto)")
    return torch.device(full_name)


def augment_on_device(given: str, device: torch.device, pixels: PixelFormat = RGB_8) -> bool:
    """Resolve efficiency.color_augmentation: True means on the device, which "auto" means if that is a GPU.

    Images of other channels or depths than 8-bit RGB are augmented in the workers.
    """
    if not pixels.is_8_bit_rgb:
        return False
    return given == "device" or (given == "auto" and device.type == "cuda")


def num_workers(given: int | None) -> int:
    """Processes that read and crop images: as given, or as many as cores, at most 16; cores are shared with the other
    training processes of this machine.
    """
    place = find_place()
    cores = num_cores() // (place.local_world_size if place else 1)
    return min(max(cores, 1), 16) if given is None else given
