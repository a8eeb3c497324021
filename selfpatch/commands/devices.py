"""Which device a command runs on."""

import torch


def find_device(name: str) -> torch.device:
    """A device by torch's name; "auto" is the GPU if there is one, else the CPU.

    Raises:
        ValueError: no such device on this machine; those that are there are given.
    """
    available = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    if torch.backends.mps.is_available():
        available.append("mps")
    if name == "auto":
        return torch.device(available[1] if len(available) > 1 else "cpu")
    full_name = "cuda:0" if name == "cuda" else name
    if full_name not in available:
        raise ValueError(f"there is no device {name!r} here; there is: {', '.join(available)} (or auto)")
    return torch.device(full_name)


def light_on_device(given: str, device: torch.device) -> bool:
    """Whether colours are changed on the device, as efficiency.light says; "auto": if it is a GPU."""
    return given == "device" or (given == "auto" and device.type == "cuda")
