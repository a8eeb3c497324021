"""Where the class token looks: its attention to the patches in the last block, head by head."""

from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from selfpatch.backbones.vit import ViT
from selfpatch.errors import UserError
from selfpatch.visualization.sheet import ColorBar, EncodedImage, Panel, draw_sheet, heat, image_panel, map_panel


@torch.no_grad()
def cls_attention(backbone: ViT, image: Float[Tensor, "1 3 H W"]) -> Float[Tensor, "h R S"]:
    """Attention of the class token to every patch; what is left to 1 it gives to itself and to registers.

    Raises:
        UserError: the backbone has no class token.
    """
    if not backbone.has_cls_token:
        raise UserError(f"{backbone.architecture.name} has no class token whose attention could be shown")
    attention: Any = list(backbone.model.blocks)[-1].attn
    fused, weights = attention.fused_attn, []
    hook = attention.attn_drop.register_forward_pre_hook(lambda _, inputs: weights.append(inputs[0]))
    attention.fused_attn = False  # fused attention never writes its weights down
    try:
        grid_size = backbone(image).grid_size
    finally:
        attention.fused_attn = fused
        hook.remove()
    return weights[0][0, :, 0, backbone.num_prefix_tokens :].float().unflatten(-1, grid_size)


def draw_attention_maps(images: list[EncodedImage], attentions: list[Float[Tensor, "h _r _s"]]) -> Image.Image:
    """A row an image: the image, then one map a head, each bright where that head looks most."""
    rows = []
    for image, heads in zip(images, attentions, strict=True):
        panels = [Panel(image_panel(image.pixels, image.tokens.grid_size), image.name)]
        for head, values in enumerate(heads):
            values = (values / values.max()).cpu().numpy()
            panels.append(Panel(map_panel(heat(values, 0.0, 1.0)), f"head {head + 1}"))
        rows.append(panels)
    return draw_sheet(
        "Where the class token looks",
        "Attention of the class token to the patches in the last block, one map a head.",
        rows,
        ColorBar("attention, in shares of the head's largest", 0.0, 1.0),
    )
