"""The same place in two crops of an image, by where their edges lie: exact for every box, size and horizontal flip.

A region is left, top, right, bottom. In the image it is in pixels; in a crop it is in sides of the crop, from (0, 0) at
its first patch to (1, 1) at the end of its last. Where left > right it is read mirrored, as flipped crops are.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torchvision.ops import roi_align

# Of a crop's side: what rounding may put a patch beyond the border by.
TOLERANCE = 1e-4


def in_crop(regions: Float[Tensor, "B 4"], boxes: Float[Tensor, "B 4"]) -> Float[Tensor, "B 4"]:
    """Regions of the image as the crops with these boxes have them; beyond [0, 1] where a crop does not reach."""
    corner, size = boxes[:, :2], boxes[:, 2:] - boxes[:, :2]
    return (regions - corner.repeat(1, 2)) / size.repeat(1, 2)


def overlap(boxes: Float[Tensor, "B 4"], others: Float[Tensor, "B 4"]) -> Float[Tensor, "B 4"]:
    """The part of the image that both crops show, not mirrored; bottom <= top or right <= left if there is none."""
    sides = torch.stack([boxes, others]).unflatten(-1, (2, 2))  # [2, B, first or last, x or y]
    return torch.cat([sides.amin(dim=-2).amax(dim=0), sides.amax(dim=-2).amin(dim=0)], dim=-1)


def sample_region(
    patch_tokens: Float[Tensor, "B N D"],
    grid_size: tuple[int, int],
    regions: Float[Tensor, "B 4"],
    size: tuple[int, int],
) -> Float[Tensor, "B M D"]:
    """The patch tokens of each crop within its region, on a grid of `size` rows and columns; in float32.

    RoI align: a place of the new grid is the mean of bilinear samples, as many as it covers patches.
    """
    rows, columns = grid_size
    left, top, right, bottom = regions.unbind(dim=-1)
    crop = torch.arange(len(regions), device=regions.device)
    rois = torch.stack([crop, left.minimum(right) * columns, top * rows, left.maximum(right) * columns, bottom * rows])
    maps = patch_tokens.float().transpose(1, 2).unflatten(2, grid_size)
    sampled = roi_align(maps, rois.T, size, aligned=True)  # [B, D, *size]
    mirrored = (left > right)[:, None, None, None]
    return torch.where(mirrored, sampled.flip(-1), sampled).flatten(2).transpose(1, 2)


def shown_patches(regions: Float[Tensor, "B 4"], grid_size: tuple[int, int]) -> Bool[Tensor, "B N"]:
    """Of crops that lie at these regions of others: which of their patches the others show whole."""
    inside = []
    for start, end, count in zip(regions[:, :2].T, regions[:, 2:].T, reversed(grid_size), strict=True):
        edges = torch.lerp(start[:, None], end[:, None], torch.linspace(0, 1, count + 1, device=regions.device))
        within = (edges >= -TOLERANCE) & (edges <= 1 + TOLERANCE)
        inside.append(within[:, :-1] & within[:, 1:])
    columns, rows = inside
    return (rows[:, :, None] & columns[:, None, :]).flatten(1)
