"""Facts that a layout of others must be able to express: activation, epsilon, kind of blocks, grid of positions."""

from typing import Any

from timm.models.eva import EvaBlock
from timm.models.vision_transformer import Block
from torch import nn

from selfpatch.backbones.backbone import Backbone

# By class: the name that transformers has for it.
ACTIVATIONS = {"GELUTanh": "gelu_pytorch_tanh", "QuickGELU": "quick_gelu", "SiLU": "silu", "ReLU": "relu"}


def activation(model: Any) -> str | None:
    """transformers' name of the activation in every feed-forward; None: they differ, or it has no such name."""
    found = {_activation_name(block.mlp.act) for block in model.blocks if hasattr(block, "mlp")}
    return found.pop() if len(found) == 1 else None


def _activation_name(act: nn.Module) -> str | None:
    if isinstance(act, nn.GELU):
        return {"none": "gelu", "tanh": "gelu_pytorch_tanh"}[act.approximate]
    return ACTIVATIONS.get(type(act).__name__)


def common_norm_eps(model: nn.Module) -> float | None:
    """The epsilon that all layer norms have; None: they differ, or one is no layer norm."""
    norms = [module for name, module in model.named_modules() if name.rpartition(".")[2] in ("norm", "norm1", "norm2")]
    norms = [norm for norm in norms if not isinstance(norm, nn.Identity)]
    found = {norm.eps if isinstance(norm, nn.LayerNorm) else None for norm in norms}
    return found.pop() if len(found) == 1 else None


def problem_of_square_layouts(backbone: Backbone, *, needs_cls_token: bool = True) -> str | None:
    """The first thing that layouts of one block after the other on a square grid cannot say; None: they can say all."""
    model = backbone.model
    blocks = list(getattr(model, "blocks", []))
    if not blocks or not all(isinstance(block, Block | EvaBlock) for block in blocks):
        return f"its blocks are of timm's {type(blocks[0]).__name__ if blocks else type(model).__name__}"
    rows, columns = model.patch_embed.grid_size
    if rows != columns or backbone.patch_size[0] != backbone.patch_size[1]:
        height, width = backbone.patch_size
        return f"it has {rows} x {columns} patches of {height} x {width} pixels, not a square of squares"
    if common_norm_eps(model) is None:
        return "its norms are of several kinds"
    if needs_cls_token and not backbone.has_cls_token:
        return "it has no class token"
    if isinstance(backbone.final_norm, nn.Identity):
        return "it has no final norm"
    return None
