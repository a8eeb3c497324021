"""Attention of the class token to the patches in the last block, head by head."""

from jaxtyping import Float
from PIL import Image
from torch import Tensor

from selfpatch.visualization.sheet import ColorBar, EncodedImage, Panel, draw_sheet, heat, image_panel, map_panel


def draw_attention_maps(images: list[EncodedImage], attentions: list[Float[Tensor, "h _r _s"]]) -> Image.Image:
    """One row per image: the image, then one map per head, each bright where that head looks most."""
    rows = []
    for image, heads in zip(images, attentions, strict=True):
        panels = [Panel(image_panel(image.pixels, image.tokens.grid_size), image.name)]
        for head, values in enumerate(heads):
            values = (values / values.max()).cpu().numpy()
            panels.append(Panel(map_panel(heat(values, 0.0, 1.0)), f"head {head + 1}"))
        rows.append(panels)
    return draw_sheet(
        "Where the class token looks",
        "Attention of the class token to the patches in the last block, one map per head.",
        rows,
        ColorBar("attention, in shares of the head's largest", 0.0, 1.0),
    )
