"""Backbones as one graph for all image sizes: what Python decides by the size is computed by tensors instead.

A graph is recorded by running the network once, and whatever Python does with a size is fixed by that. Three places do
it: the resampling of position embeddings (whose operator ONNX lacks, besides), the grid of DINOv3's rotary positions,
and the windows of a Swin with their shift and their padding.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import jaxtyping
import torch
from jaxtyping import Bool, Float, Int
from timm.layers import pos_embed_sincos
from timm.models import eva, vision_transformer
from torch import Tensor, nn

from selfpatch.backbones import pos_embed
from selfpatch.backbones.backbone import Backbone
from selfpatch.backbones.swin import Swin, shift_between_windows

# Of a graph's input: at least two by two patches, as one patch alone would be another graph.
MAX_BATCH, MIN_SIDE, MAX_SIDE = 4096, 2, 1024


class TokensOfImages(nn.Module):
    """A copy of a backbone with a tuple for an output, as graphs have it: patch tokens; the class token, if any.

    Args:
        head: of a map of patch tokens, [B, D, R, S] -> [B, C, R, S]; its output then is the only one.
    """

    def __init__(self, backbone: Backbone, head: nn.Module | None = None):
        super().__init__()
        self.head = None if head is None else copy.deepcopy(head).cpu().eval().requires_grad_(False)
        self.backbone = copy.deepcopy(backbone).cpu().eval().requires_grad_(False)
        self.backbone.set_activation_checkpointing("none")
        self.backbone.compile_blocks(None)

    def forward(self, images: Float[Tensor, "B C H W"]) -> tuple[Tensor, ...]:
        tokens = self.backbone(images)
        if self.head is not None:
            return (self.head(tokens.patch_tokens.transpose(1, 2).unflatten(2, tokens.grid_size)),)
        return (tokens.patch_tokens,) if tokens.cls_token is None else (tokens.patch_tokens, tokens.cls_token)

    @property
    def output_names(self) -> list[str]:
        if self.head is not None:
            return ["logits"]
        return ["patch_tokens", "cls_token"] if self.backbone.has_cls_token else ["patch_tokens"]

    def example(self, batch: int, rows: int, columns: int) -> Float[Tensor, "B C H W"]:
        """Images of so many patches, the same ones every time."""
        height, width = rows * self.backbone.patch_size[0], columns * self.backbone.patch_size[1]
        generator = torch.Generator().manual_seed(0)
        return torch.randn(batch, self.backbone.num_channels, height, width, generator=generator)


def trace(network: TokensOfImages) -> torch.export.ExportedProgram:
    """The network as a graph for any number of images of any size in whole patches, two by two of them at least."""
    batch = torch.export.Dim("batch", min=1, max=MAX_BATCH)
    rows = torch.export.Dim("rows", min=MIN_SIDE, max=MAX_SIDE)
    columns = torch.export.Dim("columns", min=MIN_SIDE, max=MAX_SIDE)
    patch_size = network.backbone.patch_size
    sizes = {0: batch, 2: patch_size[0] * rows, 3: patch_size[1] * columns}
    network = copy.deepcopy(network)
    # Without the setting a Swin's single window in the last stage would be another graph than several.
    with sizes_as_tensors(network.backbone), torch.fx.experimental._config.patch(backed_size_oblivious=True):
        return torch.export.export(network, (network.example(2, 6, 5),), dynamic_shapes=(sizes,), strict=False)


@contextmanager
def sizes_as_tensors(backbone: Backbone) -> Iterator[None]:
    """Inside, timm and `backbone`, a copy that is changed for good, compute by tensors what depends on the size."""
    if isinstance(backbone, Swin):
        for block in backbone.blocks:
            hooks = block._forward_pre_hooks
            for key in [key for key, hook in hooks.items() if hook is shift_between_windows]:
                del hooks[key]
            block._attn = partial(shifted_window_attention, block)
    replaced: list[tuple[Any, str, Any]] = [
        (vision_transformer, "resample_abs_pos_embed", resample_antialias),
        (eva, "resample_abs_pos_embed", resample_antialias),
        (pos_embed, "resample_with_offset", resample_with_offset),
        # Where types are checked, as in tests: the size of a graph is none of them.
        (jaxtyping.config, "jaxtyping_disable", True),
        (pos_embed_sincos, "_build_grid", partial(build_grid, pos_embed_sincos._build_grid)),
    ]
    originals = [getattr(module, name) for module, name, _ in replaced]
    try:
        for module, name, function in replaced:
            setattr(module, name, function)
        yield
    finally:
        for (module, name, _), original in zip(replaced, originals, strict=True):
            setattr(module, name, original)


# Position embeddings. Both interpolations are separable: a matrix per axis.


def resample_antialias(
    positions: Float[Tensor, "1 T D"],
    new_size: tuple[Any, Any],
    old_size: tuple[int, int],
    num_prefix_tokens: int = 1,
    **_: Any,
) -> Float[Tensor, "1 T2 D"]:
    """timm's resample_abs_pos_embed, bicubic and antialiased."""
    prefix, patches = positions.tensor_split([num_prefix_tokens], dim=1)
    rows, columns = (antialias_matrix(old, new) for old, new in zip(old_size, new_size, strict=True))
    return torch.cat([prefix, _apply(patches, old_size, rows, columns)], dim=1)


def resample_with_offset(
    positions: Float[Tensor, "1 N D"], old_grid: tuple[int, int], new_grid: tuple[Any, Any]
) -> Float[Tensor, "1 N2 D"]:
    """DINO's interpolation, as in backbones/pos_embed.py."""
    is_same = torch.stack([_count(new) == old for old, new in zip(old_grid, new_grid, strict=True)]).all()
    rows, columns = (offset_matrix(old, new, is_same) for old, new in zip(old_grid, new_grid, strict=True))
    return _apply(positions, old_grid, rows, columns)


def antialias_matrix(old: int, new: Any) -> Float[Tensor, "new old"]:
    """Keys' cubic with a = -0.5, widened when there are fewer points than before; as torch's, which follows Pillow."""
    scale = old / _count(new)
    centers = (torch.arange(new)[:, None] + 0.5) * scale
    weights = _cubic((torch.arange(old) + 0.5 - centers) / scale.clamp(min=1.0), a=-0.5)
    return weights / weights.sum(dim=1, keepdim=True)


def offset_matrix(old: int, new: Any, is_same: Tensor) -> Float[Tensor, "new old"]:
    """Keys' cubic with a = -0.75 at points (new + 0.1) / old apart, the border repeated; identity if `is_same`."""
    points = torch.arange(new)[:, None]
    points = torch.where(is_same, points, (points + 0.5) * old / (_count(new) + 0.1) - 0.5)
    neighbors = points.floor() + torch.arange(-1, 3)  # [new, 4]
    places = neighbors.clamp(0, old - 1)[..., None] == torch.arange(old)
    return (_cubic(points - neighbors, a=-0.75)[..., None] * places).sum(dim=1)


def _cubic(x: Tensor, *, a: float) -> Tensor:
    x = x.abs()
    near, far = ((a + 2) * x - (a + 3)) * x * x + 1, a * (((x - 5) * x + 8) * x - 4)
    return torch.where(x <= 1, near, torch.where(x < 2, far, 0.0))


def _apply(
    patches: Float[Tensor, "1 N D"],
    grid_size: tuple[int, int],
    rows: Float[Tensor, "R _r"],
    columns: Float[Tensor, "S _s"],
) -> Float[Tensor, "1 N2 D"]:
    grid = patches.unflatten(1, grid_size).permute(0, 3, 1, 2)
    return (rows @ grid @ columns.T).flatten(2).transpose(1, 2)


def _count(size: Any) -> Float[Tensor, ""]:
    """A size of the graph as a number in it."""
    return torch.arange(size)[-1] + 1.0


# Rotary positions.


def build_grid(original: Any, feat_shape: Any, grid_type: str = "index", **settings: Any) -> Float[Tensor, "R S 2"]:
    """timm's _build_grid, whose "centered" grid takes the size for a constant."""
    if grid_type != "centered" or settings.get("ref_feat_shape") is not None:
        return original(feat_shape, grid_type=grid_type, **settings)
    assert settings.get("normalize_coords", "separate") == "separate", settings
    assert settings.get("grid_indexing", "ij") == "ij", settings
    offset = 0.5 + settings.get("grid_offset", 0.0)
    axes = [(torch.arange(size) + offset) / _count(size) for size in feat_shape]
    return 2.0 * torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1) - 1.0


# Windows.


def shifted_window_attention(block: Any, x: Float[Tensor, "B R S D"]) -> Float[Tensor, "B R S D"]:
    """timm's SwinTransformerBlock._attn with the shift of `shift_between_windows`: none along a single window.

    Windows are gathered by index: reshaping a map of one window and one of several are two graphs.
    """
    batch, rows, columns, width = x.shape
    height, wide = block.window_size
    num_windows, area = ((rows + height - 1) // height) * ((columns + wide - 1) // wide), height * wide
    places = torch.arange(num_windows * area)
    window, place = places // area, places % area
    count = torch.arange(columns)[-1] + 1
    per_row = (count + wide - 1) // wide  # windows side by side
    down = window_axis(rows, height, block.target_shift_size[0], window // per_row, place // wide)
    across = window_axis(columns, wide, block.target_shift_size[1], window % per_row, place % wide)

    # 1. Shift, pad and cut into windows.
    source = down.source * count + across.source
    is_image = (down.is_image & across.is_image)[:, None]
    windows = x.reshape(batch, rows * columns, width).index_select(1, source) * is_image
    # 2. Attention, only between places that were neighbors before the shift.
    region = (down.region * 3 + across.region).reshape(num_windows, area)
    mask = -100.0 * (region[:, None] != region[:, :, None])
    mask = mask.index_select(0, torch.arange(batch * num_windows) % (window[-1] + 1))
    windows = block.attn(windows.reshape(batch * num_windows, area, width), mask=mask)
    # 3. Back.
    target = (down.window[:, None] * per_row + across.window) * area + down.place[:, None] * wide + across.place
    shifted = windows.reshape(batch, num_windows * area, width).index_select(1, target.flatten())
    return shifted.reshape(batch, rows, columns, width)


class WindowAxis(NamedTuple):
    """One side of a map in windows.

    Args:
        source: for a place of a window, the row (or column) of the map that is seen there.
        is_image: whether that place is none of the padding.
        region: attention is between places of equal regions.
        window, place: for a row (or column) of the map, where it is seen.
    """

    source: Int[Tensor, " W"]
    is_image: Bool[Tensor, " W"]
    region: Int[Tensor, " W"]
    window: Int[Tensor, " R"]
    place: Int[Tensor, " R"]


def window_axis(size: Any, length: int, shift: int, window: Tensor, place: Tensor) -> WindowAxis:
    """
    Args:
        length, shift: of windows; there is no shift along a single window.
        window, place: which window along this side, and which place in it, of every place of every window.
    """
    own = torch.arange(size)
    count = own[-1] + 1
    by = torch.where(count > length, min(shift, length // 2), 0)
    position = window * length + place
    end = (count + length - 1) // length * length
    region = torch.where(by > 0, (position >= end - length).long() + (position >= end - by).long(), 0)
    seen_at = (own - by + count) % count
    return WindowAxis((position + by) % count, position < count, region, seen_at // length, seen_at % length)
