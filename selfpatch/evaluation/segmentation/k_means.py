"""Plain k-means in torch, on any device: deterministic per seed, several restarts, no empty clusters.

Lloyd's iterations are a matrix product and a sum; scipy's kmeans2 has one start and one core, and faiss or scikit-learn
would be a large dependency for this one use.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from selfpatch.errors import UserError

MAX_CHUNK = 2**24  # distances held at once: 64 MiB


def k_means(
    points: Float[Tensor, "N D"],
    num_clusters: int,
    *,
    num_restarts: int,
    num_iterations: int,
    max_points: int,
    seed: int,
) -> Float[Tensor, "K D"]:
    """Centers with the smallest sum of squared distances over all restarts.

    A restart takes random points as its centers. At most max_points points, drawn at random, are used.

    Raises:
        UserError: fewer points than clusters.
    """
    if len(points) < num_clusters:
        raise UserError(f"{len(points)} points do not make {num_clusters} clusters; ask for fewer clusters")
    generator = torch.Generator().manual_seed(seed)  # on the CPU: the same draws on every device
    if len(points) > max_points:
        points = points[draw(len(points), max_points, generator).to(points.device)]
    best_centers, smallest = points[:num_clusters], float("inf")
    for _ in range(num_restarts):
        start = points[draw(len(points), num_clusters, generator).to(points.device)]
        centers, distance_sum = iterate(points, start, num_iterations)
        if distance_sum < smallest:
            best_centers, smallest = centers, distance_sum
    return best_centers


def draw(num_points: int, count: int, generator: torch.Generator) -> Int64[Tensor, " count"]:
    return torch.randperm(num_points, generator=generator)[:count]


def iterate(
    points: Float[Tensor, "N D"], centers: Float[Tensor, "K D"], num_iterations: int
) -> tuple[Float[Tensor, "K D"], float]:
    """Lloyd's iterations until no label changes; returns the centers and the sum of squared distances to them."""
    labels, distance = nearest_center(points, centers)
    for _ in range(num_iterations):
        centers = means(points, labels, distance, len(centers))
        previous = labels
        labels, distance = nearest_center(points, centers)
        if torch.equal(labels, previous):
            break
    return centers, float(distance.cpu().sum(dtype=torch.float64))  # on the CPU: Apple's GPUs have no float64


def nearest_center(
    points: Float[Tensor, "N D"], centers: Float[Tensor, "K D"]
) -> tuple[Int64[Tensor, " N"], Float[Tensor, " N"]]:
    """Nearest center of each point, the first of equally near ones, and the squared distance to it."""
    center_norm = centers.square().sum(dim=-1)
    labels, distances = [], []
    for chunk in points.split(max(1, MAX_CHUNK // len(centers))):
        # |p - c|^2 without |p|^2, which is the same for all centers.
        partial = torch.addmm(center_norm, chunk, centers.T, alpha=-2)  # [n, K]
        distance, label = partial.min(dim=-1)
        labels.append(label)
        distances.append((distance + chunk.square().sum(dim=-1)).clamp(min=0))
    return torch.cat(labels), torch.cat(distances)


def means(
    points: Float[Tensor, "N D"], labels: Int64[Tensor, " N"], distance: Float[Tensor, " N"], num_clusters: int
) -> Float[Tensor, "K D"]:
    """Mean of each cluster; empty clusters restart at the points farthest from their centers."""
    counts = torch.bincount(labels, minlength=num_clusters)
    centers = sums_by_label(points, labels, num_clusters) / counts.clamp(min=1)[:, None]
    (empty,) = (counts == 0).nonzero(as_tuple=True)
    if len(empty):
        centers[empty] = points[distance.topk(len(empty)).indices]
    return centers


def sums_by_label(points: Float[Tensor, "N D"], labels: Int64[Tensor, " N"], num_clusters: int) -> Float[Tensor, "K D"]:
    sums = points.new_zeros(num_clusters, points.shape[1])
    if points.device.type == "cpu":
        return sums.index_add_(0, labels, points)
    # On a GPU index_add_ adds in another order every time.
    chunk_size = max(1, MAX_CHUNK // num_clusters)
    for chunk, of_chunk in zip(points.split(chunk_size), labels.split(chunk_size), strict=True):
        sums += F.one_hot(of_chunk, num_clusters).to(points.dtype).T @ chunk
    return sums
