"""Label propagation: labels of a video's first frame, passed from frame to frame by the similarity of patches.

Axis letters of this file: T context frames, C labels (with background), Q queries of a tile, K keys of its window.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from selfpatch.evaluation.features import resize_mask

TILE = (10, 13)  # rows and columns of queries that share one window of keys: small copies, few keys outside the radius
MAX_SIMILARITIES = 2**23  # held at once: 32 MiB, and a few times that for intermediate results
MAX_LABELS = 16  # upsampled at once


def propagate(
    features: Iterable[Float[Tensor, "D R S"]],
    first_labels: Float[Tensor, "C R S"],
    *,
    num_last_frames: int,
    radius: int,
    num_neighbors: int,
    temperature: float,
) -> Iterator[Float[Tensor, "C R S"]]:
    """Soft labels of every frame after the first, from those of the first frame and of the num_last_frames before it.

    Args:
        features: features of all frames, the first one included.
        radius: see `propagate_labels`.

    Source: DINO (ICCV 2021), appendix; facebookresearch/dino eval_video_segmentation.py.
    """
    context: deque[tuple[Tensor, Tensor]] = deque(maxlen=num_last_frames)
    first = None
    for feature in features:
        feature = F.normalize(feature, dim=0).permute(1, 2, 0).contiguous()  # [R, S, D]
        if first is None:
            first = feature, first_labels.permute(1, 2, 0).contiguous()
            continue
        keys, key_labels = (torch.stack(part) for part in zip(first, *context, strict=True))
        labels = propagate_labels(
            feature, keys, key_labels, radius=radius, num_neighbors=num_neighbors, temperature=temperature
        )
        context.append((feature, labels))
        yield labels.permute(2, 0, 1)


@torch.no_grad()
def propagate_labels(
    queries: Float[Tensor, "R S D"],
    keys: Float[Tensor, "T R S D"],
    key_labels: Float[Tensor, "T R S C"],
    *,
    radius: int,
    num_neighbors: int,
    temperature: float,
) -> Float[Tensor, "R S C"]:
    """Labels of the most similar patches of the context, weighted by exp(cosine / temperature).

    The num_neighbors most similar patches are searched over all context frames together; patches as similar as the last
    of them count too. A tile of queries is compared only with the window that its neighborhoods cover.

    Args:
        queries, keys: unit vectors.
        radius: largest distance of neighbors in rows and in columns; 0: no limit.
    """
    rows, columns, _ = queries.shape
    queries = queries / temperature
    labels = queries.new_empty((rows, columns, key_labels.shape[-1]))
    for tile in tiles((rows, columns), radius):
        window, window_labels = (x[:, tile.near_down, tile.near_across].flatten(0, 2) for x in (keys, key_labels))
        masked_out = tile.masked_out(len(keys), radius).to(queries.device)
        chunk_size = max(1, MAX_SIMILARITIES // len(window))
        chunks = (x.split(chunk_size) for x in (queries[tile.down, tile.across].flatten(0, 1), masked_out))
        tile_labels = torch.cat(
            [nearest_labels(q, window, window_labels, mask, num_neighbors) for q, mask in zip(*chunks, strict=True)]
        )
        labels[tile.down, tile.across] = tile_labels.unflatten(0, labels[tile.down, tile.across].shape[:2])
    return labels


class Tile(NamedTuple):
    """Rows and columns of a tile of queries, and those of the window of keys that it is compared with."""

    down: slice
    across: slice
    near_down: slice
    near_across: slice

    def masked_out(self, num_frames: int, radius: int) -> Bool[Tensor, "Q K"]:
        """Keys of the window, over all context frames, that are outside the radius of a query."""
        rows = outside_radius(self.down, self.near_down, radius)[:, None, None, :, None]
        columns = outside_radius(self.across, self.near_across, radius)[None, :, None, None, :]
        return (rows | columns).expand(-1, -1, num_frames, -1, -1).flatten(2).flatten(0, 1)


def tiles(grid_size: tuple[int, int], radius: int) -> Iterator[Tile]:
    """Tiles that cover the grid of queries."""
    for left in range(0, grid_size[1], TILE[1]):
        across = slice(left, min(left + TILE[1], grid_size[1]))
        for top in range(0, grid_size[0], TILE[0]):
            down = slice(top, min(top + TILE[0], grid_size[0]))
            yield Tile(
                down, across, expand_window(down, radius, grid_size[0]), expand_window(across, radius, grid_size[1])
            )


def expand_window(side: slice, radius: int, size: int) -> slice:
    """Side of a tile extended by the radius, within the grid; 0: the whole grid."""
    return slice(max(side.start - radius, 0), min(side.stop + radius, size)) if radius else slice(0, size)


def outside_radius(queries: slice, keys: slice, radius: int) -> Bool[Tensor, "A B"]:
    """Mask of the rows (or columns) of keys that are farther than the radius from rows (or columns) of queries."""
    distance = torch.arange(queries.start, queries.stop)[:, None] - torch.arange(keys.start, keys.stop)
    return distance.abs() > radius if radius else torch.zeros_like(distance, dtype=torch.bool)


def nearest_labels(
    queries: Float[Tensor, "Q D"],
    keys: Float[Tensor, "K D"],
    key_labels: Float[Tensor, "K C"],
    masked_out: Bool[Tensor, "Q K"],
    num_neighbors: int,
) -> Float[Tensor, "Q C"]:
    """Labels of the nearest keys, weighted by the softmax over their dot products with the query."""
    similarity = torch.zeros_like(masked_out, dtype=queries.dtype).masked_fill_(masked_out, -torch.inf)
    similarity.addmm_(queries, keys.T)
    # One more than asked for shows whether there is a tie for the last place.
    best, places = similarity.topk(min(num_neighbors + 1, len(keys)), dim=-1)
    last = best[:, :num_neighbors].amin(dim=-1, keepdim=True)
    if (best[:, num_neighbors:] == last).any():
        return similarity.masked_fill_(similarity < last, -torch.inf).softmax(dim=-1) @ key_labels
    weight = best[:, :num_neighbors].softmax(dim=-1)
    return torch.einsum("qk,qkc->qc", weight, key_labels[places[:, :num_neighbors]])


def first_labels(
    annotation: UInt8[np.ndarray, "H W"], grid_size: tuple[int, int], num_objects: int
) -> Float[Tensor, "C R S"]:
    """One-hot maps of the annotation at the patch grid (nearest), background first."""
    nearest = torch.from_numpy(resize_mask(annotation, grid_size)).long()
    return F.one_hot(nearest, num_objects + 1).permute(2, 0, 1).float()


def labels_to_mask(labels: Float[Tensor, "C R S"], patch_size: tuple[int, int]) -> UInt8[Tensor, "H W"]:
    """Label of every pixel: maps are upsampled bilinearly and min-max normalised over the frame; the highest wins.

    A map that is constant and not 0 wins everywhere, since the original divides 0 by 0 there and takes nan for the
    highest; of equal ones the first wins.
    """
    size = labels.shape[1] * patch_size[0], labels.shape[2] * patch_size[1]
    highest, winner = labels.new_full(size, -torch.inf), labels.new_zeros(size, dtype=torch.uint8)
    for start in range(0, len(labels), MAX_LABELS):
        chunk = labels[None, start : start + MAX_LABELS]
        (maps,) = F.interpolate(chunk, scale_factor=patch_size, mode="bilinear", align_corners=False)
        low, high = maps.amin(dim=(1, 2), keepdim=True), maps.amax(dim=(1, 2), keepdim=True)
        flat = torch.zeros_like(high).masked_fill(high > 0, torch.inf)
        value, index = torch.where(high > low, (maps - low) / (high - low), flat).max(dim=0)
        winner = torch.where(value > highest, (start + index).to(torch.uint8), winner)
        highest = torch.maximum(highest, value)
    return winner
