"""Labels of a video's first frame carried on from frame to frame by the similarity of patches.

Axis letters of this file: T context frames, C labels (with background), Q queries of a tile, P places of its window.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from selfpatch.evaluation.features import resize_mask

TILE = (10, 13)  # rows and columns of queries that share one window of keys: small copies, little work outside
MAX_SIMILARITIES = 2**23  # that are held at once: 32 MiB, and a few times that for what is made of them
MAX_LABELS = 16  # that are upsampled at once


def propagate(
    features: Iterable[Float[Tensor, "D R S"]],
    first_labels: Float[Tensor, "C R S"],
    *,
    num_last_frames: int,
    radius: int,
    num_neighbours: int,
    temperature: float,
) -> Iterator[Float[Tensor, "C R S"]]:
    """The soft labels of every frame after the first, from those of the first and of the last ones before it.

    Args:
        features: of all frames, the first one too.
        radius: see `carry_labels`.

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
        labels = carry_labels(
            feature, keys, key_labels, radius=radius, num_neighbours=num_neighbours, temperature=temperature
        )
        context.append((feature, labels))
        yield labels.permute(2, 0, 1)


@torch.no_grad()
def carry_labels(
    queries: Float[Tensor, "R S D"],
    keys: Float[Tensor, "T R S D"],
    key_labels: Float[Tensor, "T R S C"],
    *,
    radius: int,
    num_neighbours: int,
    temperature: float,
) -> Float[Tensor, "R S C"]:
    """Every patch takes the labels of its most similar patches in the context, weighted by exp(cosine / temperature).

    These are sought in all context frames together; patches as similar as the last of them count too. A tile of queries
    is compared with the window that its own neighbourhoods cover: patches farther away cost nothing.

    Args:
        queries, keys: unit vectors.
        radius: neighbours are at most so many rows and columns away; 0: anywhere.
    """
    grid_size, num_labels = queries.shape[:2], key_labels.shape[-1]
    reach = (radius, radius) if radius else grid_size
    queries = queries / temperature
    labels = queries.new_empty((*grid_size, num_labels))
    for tile in tiles(grid_size):
        window = tuple(
            slice(max(side.start - r, 0), min(side.stop + r, size))
            for side, r, size in zip(tile, reach, grid_size, strict=True)
        )
        tile_queries = queries[tile].flatten(0, 1)  # [Q, D]
        window_keys = keys[:, *window].flatten(0, 2)  # [T*P, D]
        window_labels = key_labels[:, *window].flatten(0, 2)  # [T*P, C]
        is_far = beyond_reach(tile, window, reach, queries.device)
        chunk_size = max(1, MAX_SIMILARITIES // len(window_keys))
        tile_labels = [
            nearest_labels(chunk, window_keys, window_labels, is_far_chunk, num_neighbours)
            for chunk, is_far_chunk in zip(tile_queries.split(chunk_size), is_far.split(chunk_size), strict=True)
        ]
        labels[tile] = torch.cat(tile_labels).unflatten(0, labels[tile].shape[:2])
    return labels


def tiles(grid_size: Sequence[int]) -> Iterator[tuple[slice, slice]]:
    rows, columns = grid_size
    for top in range(0, rows, TILE[0]):
        for left in range(0, columns, TILE[1]):
            yield slice(top, min(top + TILE[0], rows)), slice(left, min(left + TILE[1], columns))


def beyond_reach(
    tile: tuple[slice, ...], window: tuple[slice, ...], reach: Sequence[int], device: torch.device
) -> Bool[Tensor, "Q P"]:
    """Which places of the window are too far away for which queries of the tile."""
    far_rows, far_columns = (
        (torch.arange(t.start, t.stop, device=device)[:, None] - torch.arange(w.start, w.stop, device=device)).abs() > r
        for t, w, r in zip(tile, window, reach, strict=True)
    )
    is_far = far_rows[:, None, :, None] | far_columns[None, :, None, :]
    return is_far.flatten(2).flatten(0, 1)


def nearest_labels(
    queries: Float[Tensor, "Q D"],
    keys: Float[Tensor, "K D"],
    key_labels: Float[Tensor, "K C"],
    is_far: Bool[Tensor, "Q P"],
    num_neighbours: int,
) -> Float[Tensor, "Q C"]:
    """Labels of the nearest keys, weighted by the softmax over their products with the query; K = T * P."""
    far = torch.zeros_like(is_far, dtype=queries.dtype).masked_fill_(is_far, -torch.inf)
    similarity = torch.addmm(far.repeat(1, len(keys) // far.shape[1]), queries, keys.T)
    # One more than asked for shows whether there is a tie for the last place.
    best, places = similarity.topk(min(num_neighbours + 1, len(keys)), dim=-1)
    last = best[:, :num_neighbours].amin(dim=-1, keepdim=True)
    if (best[:, num_neighbours:] == last).any():
        return similarity.masked_fill_(similarity < last, -torch.inf).softmax(dim=-1) @ key_labels
    weight = best[:, :num_neighbours].softmax(dim=-1)
    return torch.einsum("qk,qkc->qc", weight, key_labels[places[:, :num_neighbours]])


def first_labels(
    annotation: UInt8[np.ndarray, "H W"], grid_size: tuple[int, int], num_objects: int
) -> Float[Tensor, "C R S"]:
    """One map a label, background first: 1 where the patch grid, laid over the annotation, meets the label."""
    nearest = torch.from_numpy(resize_mask(annotation, grid_size)).long()
    return F.one_hot(nearest, num_objects + 1).permute(2, 0, 1).float()


def label_mask(labels: Float[Tensor, "C R S"], patch_size: tuple[int, int]) -> UInt8[Tensor, "H W"]:
    """The label of every pixel: upsampled bilinearly, each label stretched to [0, 1] over the frame, the highest wins.

    A label that is everywhere the same and not 0 wins everywhere, since the original divides 0 by 0 there and takes
    nan for the highest; of equals the first wins.
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
