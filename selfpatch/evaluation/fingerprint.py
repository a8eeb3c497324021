"""Identity of a model, and its description in results."""

import hashlib
from typing import Any

import torch
from torch import nn

from selfpatch.backbones.backbone import Backbone

# Of a backbone: what changes its tokens and stands in no tensor.
BEYOND_WEIGHTS = ("architecture", "num_heads", "pos_embed_interpolation")


def fingerprint(model: nn.Module) -> str:
    """SHA-256 of all weights, their names, and what else makes the tokens."""
    model = getattr(model, "unwrap_cache", model)
    digest = hashlib.sha256(repr([getattr(model, name, None) for name in BEYOND_WEIGHTS]).encode())
    for name, value in model.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def description(backbone: Backbone) -> dict[str, Any]:
    """Facts about a model for result.json, besides its name."""
    model = getattr(backbone, "unwrap_cache", backbone)
    described = {"fingerprint": fingerprint(model)[:12]}
    if (architecture := getattr(model, "architecture", None)) is not None:
        described["architecture"] = architecture.name
    names = ("patch_size", "embed_dim", "num_heads", "pos_embed_interpolation", "mean", "std")
    return described | {name: getattr(model, name) for name in names if hasattr(model, name)}
