"""Positives: the most similar neighbors of every patch, and their summary in one token."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from selfpatch.backbones.backbone import Tokens
from selfpatch.config.objectives.patch import PatchConfig
from selfpatch.errors import UserError

# Temperature of the softmax over similarities that weights positives: a cosine 0.1 higher weighs e times as much.
SIMILARITY_TEMPERATURE = 0.1


def find_positives(tokens: Tokens, config: PatchConfig) -> tuple[Int[Tensor, "B N P"], Float[Tensor, "B N P"]]:
    """The most similar neighbors of every patch, best first, and their cosine similarity."""
    neighbors, valid = neighborhood(tokens.grid_size, config.window_size, config.padding_mode)
    device = tokens.patch_tokens.device
    return match_positives(tokens.patch_tokens, neighbors.to(device), valid.to(device), _num_sought(config))


def require_neighbors(grid_size: tuple[int, int], config: PatchConfig) -> None:
    """
    Raises:
        UserError: a crop of this grid is smaller than the window, or has fewer patches than positives are sought.
    """
    neighbors, _ = neighborhood(grid_size, config.window_size, config.padding_mode)
    if neighbors.shape[1] < _num_sought(config):
        raise UserError(
            f"a crop of {grid_size[0]} x {grid_size[1]} patches has {neighbors.shape[1]} neighbors for each, fewer "
            f"than the {config.num_positives} positives (num-positives) that are sought; use larger crops, smaller "
            "patches or fewer positives"
        )


def _num_sought(config: PatchConfig) -> int:
    return 1 if config.aggregation == "nearest" else config.num_positives


def neighborhood(
    grid_size: tuple[int, int], window_size: int | str, padding_mode: str
) -> tuple[Int[Tensor, "N M"], Bool[Tensor, "N M"]]:
    """Indices of the patches in the window around every patch, without itself, and whether they are valid.

    Beyond the border, "circular" continues at the opposite side, as the authors' code does; "none" has nothing there.
    The window "image" holds all patches, wherever they are.

    Raises:
        UserError: the grid is smaller than the window: a wrapped neighbor would be the patch itself, or come twice.
    """
    rows, columns = grid_size
    if not isinstance(window_size, int):
        others = torch.arange(rows * columns - 1).expand(rows * columns, -1)
        indices = others + (others >= torch.arange(rows * columns)[:, None])
        return indices, torch.ones_like(indices, dtype=torch.bool)
    if min(rows, columns) < window_size:
        raise UserError(
            f"a crop of {rows} x {columns} patches is smaller than the window of {window_size} x {window_size} patches "
            "in which positives are sought; use larger crops, smaller patches or a smaller window-size"
        )
    along_axis = torch.arange(window_size) - window_size // 2
    offsets = torch.cartesian_prod(along_axis, along_axis)
    center = len(offsets) // 2
    row_offset, column_offset = torch.cat([offsets[:center], offsets[center + 1 :]]).unbind(dim=-1)
    patch = torch.arange(rows * columns)[:, None]
    row, column = patch // columns + row_offset, patch % columns + column_offset  # [N, M]
    inside = (row >= 0) & (row < rows) & (column >= 0) & (column < columns)
    indices = (row % rows) * columns + column % columns
    return indices, torch.ones_like(inside) if padding_mode == "circular" else inside


def match_positives(
    patch_tokens: Float[Tensor, "B N D"],
    neighbors: Int[Tensor, "N M"],
    valid: Bool[Tensor, "N M"],
    num_positives: int,
) -> tuple[Int[Tensor, "B N P"], Float[Tensor, "B N P"]]:
    """The `num_positives` neighbors of highest cosine similarity, best first, and that similarity.

    Tokens come as the backbone gives them, before any norm of the aggregator.
    """
    unit = F.normalize(patch_tokens.float(), dim=-1)
    # All pairs by one product, then M numbers a patch: cheaper than gathering M vectors a patch. In float32: neighbors
    # are so alike that bf16 cannot tell them apart.
    with torch.autocast(unit.device.type, enabled=False):
        similarity = unit @ unit.transpose(1, 2)  # [B, N, N]
    similarity = similarity.gather(2, neighbors.expand(len(similarity), -1, -1))  # [B, N, M]
    best, order = similarity.masked_fill(~valid, -torch.inf).topk(num_positives, dim=-1)
    return neighbors.expand_as(similarity).gather(2, order), best


def average_positives(
    patch_tokens: Float[Tensor, "B N D"],
    positives: Int[Tensor, "B N P"],
    similarity: Float[Tensor, "B N P"],
    aggregation: str,
) -> Float[Tensor, "B N D"]:
    """The mean of every patch's positives: of equal weight, or weighted by a softmax over their similarity."""
    if aggregation == "similarity_weighted_mean":
        weights = (similarity / SIMILARITY_TEMPERATURE).softmax(dim=-1)
    else:
        weights = torch.full_like(similarity, 1 / similarity.shape[-1])
    batch = torch.arange(len(patch_tokens), device=patch_tokens.device)[:, None]
    mean = torch.zeros_like(patch_tokens, dtype=torch.float32)
    for positive, weight in zip(positives.unbind(dim=-1), weights.unbind(dim=-1), strict=True):
        mean += weight[..., None] * patch_tokens[batch, positive]
    return mean.to(patch_tokens.dtype)


@torch.no_grad()
def similarity_signals(
    patch_tokens: Float[Tensor, "B N D"], positive_similarity: Float[Tensor, "B N P"] | None
) -> dict[str, Float[Tensor, ""]]:
    """Cosine similarity of positives, and of patches half an image apart: equal means that patches have collapsed."""
    unit = F.normalize(patch_tokens.float(), dim=-1)
    apart = (unit * unit.roll(unit.shape[1] // 2, dims=1)).sum(dim=-1)
    found = {} if positive_similarity is None else {"positive_similarity": positive_similarity.mean()}
    return found | {"random_similarity": apart.mean()}
