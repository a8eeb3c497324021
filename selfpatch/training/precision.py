"""Arithmetic of the forward pass: float32, or bf16 by autocast."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch


def autocast_for(precision: str, device: torch.device) -> Callable[[], AbstractContextManager]:
    """bf16 where it was asked for, or where "auto" finds a GPU that has it; losses cast themselves to float32."""
    if resolve_precision(precision, device) == "bf16":
        return lambda: torch.autocast(device.type, dtype=torch.bfloat16)
    return nullcontext


def resolve_precision(precision: str, device: torch.device) -> str:
    """Replace "auto" by the precision that this device has."""
    if precision != "auto":
        return precision
    has_bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bf16" if has_bf16 else "float32"
