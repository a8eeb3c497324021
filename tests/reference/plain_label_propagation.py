"""Label propagation in the plain form: all patches against all patches of the context, then masked.

The benchmark times this form; the original program computes it so.
"""

import torch
import torch.nn.functional as F


def neighborhood(rows: int, columns: int, radius: int) -> torch.Tensor:
    """1 where two patches are at most `radius` rows and columns apart, pair by pair."""
    near = torch.zeros(rows, columns, rows, columns)
    for i in range(rows):
        for j in range(columns):
            for k in range(i - radius, i + radius + 1):
                for m in range(j - radius, j + radius + 1):
                    if 0 <= k < rows and 0 <= m < columns:
                        near[i, j, k, m] = 1
    return near.reshape(rows * columns, rows * columns)


def layer_norm(feature: torch.Tensor, norm: torch.nn.LayerNorm) -> torch.Tensor:
    """DINO's features [D, R, S] out of those of the last block; SelfPatch's copy of the program has no such step."""
    centered = feature - feature.mean(dim=0)
    unit = centered / (centered.square().mean(dim=0) + norm.eps).sqrt()
    return unit * norm.weight[:, None, None] + norm.bias[:, None, None]


def carry(
    feature: torch.Tensor,  # [D, N]
    features: list[torch.Tensor],  # of the context
    labels: list[torch.Tensor],  # of the context, [C, N] each
    near: torch.Tensor | None,
    num_neighbors: int,
    temperature: float,
) -> torch.Tensor:
    """The labels [C, N] of one frame."""
    context = len(features)
    sources = F.normalize(torch.stack(features), dim=1)
    queries = F.normalize(feature, dim=0).T.repeat(context, 1, 1)
    affinity = torch.exp(queries @ sources / temperature)  # [context, queries, keys]
    if near is not None:
        affinity *= near.repeat(context, 1, 1)
    affinity = affinity.transpose(1, 2).flatten(0, 1)  # [context * keys, queries]
    lowest = affinity.topk(min(num_neighbors, len(affinity)), dim=0).values.amin(dim=0)
    affinity[affinity < lowest] = 0
    affinity = affinity / affinity.sum(dim=0)
    return torch.cat(labels, dim=1) @ affinity


def propagate(
    features: list[torch.Tensor],  # [D, R, S] each
    first_labels: torch.Tensor,  # [C, R, S]
    num_last_frames: int,
    radius: int,
    num_neighbors: int,
    temperature: float,
) -> list[torch.Tensor]:
    """Labels [C, R, S] of every frame after the first."""
    rows, columns = first_labels.shape[1:]
    near = neighborhood(rows, columns, radius) if radius > 0 else None
    flat = [feature.flatten(1) for feature in features]
    labels = [first_labels.flatten(1)]
    for t in range(1, len(flat)):
        context = [0, *range(max(1, t - num_last_frames), t)]
        labels.append(
            carry(flat[t], [flat[i] for i in context], [labels[i] for i in context], near, num_neighbors, temperature)
        )
    return [of_frame.reshape(-1, rows, columns) for of_frame in labels[1:]]


def mask(labels: torch.Tensor, patch_size: tuple[int, int]) -> torch.Tensor:
    """The label of every pixel; 0 / 0 is nan, and torch's maximum is nan where there is one."""
    size = labels.shape[1] * patch_size[0], labels.shape[2] * patch_size[1]
    (maps,) = F.interpolate(labels[None], size=size, mode="bilinear", align_corners=False)
    stretched = [(m - m.min()) / (m - m.min()).max() if m.max() > 0 else m for m in maps]
    return torch.stack(stretched).max(dim=0).indices
