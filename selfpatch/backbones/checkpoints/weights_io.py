"""Files of tensors, whoever wrote them: read without executing anything, and refused where they hold no weights."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from selfpatch.errors import UserError

# Training checkpoints nest their dictionaries three or four deep and hold some thousand tensors and numbers.
MAX_DEPTH, MAX_ENTRIES = 16, 1_000_000


def read_metadata(file: Path) -> dict[str, str]:
    if file.suffix != ".safetensors":
        return {}
    try:
        with safe_open(file, "pt") as content:
            return content.metadata() or {}
    except SafetensorError as error:
        raise UserError(f"{file} is damaged or no safetensors file: {error}; copy or export it again") from error


def read_tensors(file: Path) -> dict[str, Tensor]:
    """All tensors of a file; those of nested dictionaries under dotted names.

    Raises:
        UserError: damaged, of another kind, or with more in it than tensors and plain values.
    """
    if file.suffix == ".safetensors":
        return load_file(file)
    # The original programs keep their arguments beside the weights: a Namespace, which only holds values.
    with file.open("rb") as stream, torch.serialization.safe_globals([argparse.Namespace]):
        try:
            checkpoint = torch.load(stream, map_location="cpu", weights_only=True)
        except Exception as error:  # damaged bytes make the reader raise nearly anything
            raise UserError(
                f"{file} is no checkpoint that can be read safely: it is damaged, of another kind, or holds more than "
                f"tensors and plain values, which is never executed ({type(error).__name__})"
            ) from error
    return _flatten(file, checkpoint)


def check_weights(file: Path, tensors: Mapping[str, Tensor]) -> None:
    """Refuse what has the name and shape of weights and is none.

    Raises:
        UserError: tensors without numbers of their own, of whole numbers, or with numbers that are not finite.
    """
    for name, tensor in tensors.items():
        is_dense = tensor.layout == torch.strided and tensor.device.type == "cpu" and tensor.is_floating_point()
        # A few numbers can be spread over any shape; a file of some bytes would take all memory.
        if not is_dense or tensor.untyped_storage().nbytes() < tensor.numel() * tensor.element_size():
            raise UserError(
                f"{file} holds no weights in {name}: a tensor of {tensor.dtype}, {tensor.layout}, on {tensor.device}; "
                "floating-point numbers, one for each place, are needed: save the state_dict of the network again"
            )
    if broken := [name for name, tensor in tensors.items() if not tensor.isfinite().all()]:
        more = ", ..." if len(broken) > 3 else ""
        raise UserError(
            f"{file} has numbers that are not finite in {len(broken)} of {len(tensors)} tensors: "
            f"{', '.join(broken[:3])}{more}; such weights are those of a run that diverged: take an earlier checkpoint"
        )


def _flatten(file: Path, tree: Any) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    pending, num_entries = [("", tree, 0)], 0
    while pending:
        prefix, value, depth = pending.pop()
        num_entries += 1
        # A dictionary may contain itself.
        if depth > MAX_DEPTH or num_entries > MAX_ENTRIES:
            raise UserError(
                f"{file} nests dictionaries more than {MAX_DEPTH} deep or has more than {MAX_ENTRIES:,} entries; no "
                "checkpoint does: save the state_dict of the network alone"
            )
        if isinstance(value, Tensor):
            tensors[prefix.removesuffix(".")] = value
        elif isinstance(value, dict):
            pending += [(f"{prefix}{name}.", child, depth + 1) for name, child in reversed(value.items())]
    return tensors
