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
    """Replace "auto" by bf16 on a GPU that has it, else float32: of heads, whose protocols say so."""
    if precision != "auto":
        return precision
    has_bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bf16" if has_bf16 else "float32"


def fastest_precision(device: torch.device) -> tuple[str, str]:
    """What "auto" is for pretraining: bf16 where the device multiplies it faster than float32; and the reason."""
    if device.type != "cpu":
        precision = resolve_precision("auto", device)
        return precision, f"this {device.type} device has {'bf16' if precision == 'bf16' else 'no bf16'}"
    instructions = cpu_bf16_instructions()
    if instructions is None:
        return "float32", "this CPU multiplies no bf16"
    return "bf16", f"this CPU has {instructions}, which multiply bf16 faster than float32"


def cpu_bf16_instructions() -> str | None:
    """Name of the instructions by which this CPU multiplies matrices in bf16; None: it has none."""
    if hasattr(torch.cpu, "get_capabilities"):
        capabilities = torch.cpu.get_capabilities()
        has_amx, has_avx512 = bool(capabilities.get("amx_bf16")), bool(capabilities.get("avx512_bf16"))
    else:  # torch before 2.11
        has_amx, has_avx512 = torch.cpu._is_amx_tile_supported(), torch.cpu._is_avx512_bf16_supported()
    return "AMX instructions" if has_amx else "AVX512-BF16 instructions" if has_avx512 else None
