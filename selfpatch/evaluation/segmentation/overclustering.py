"""Overclustering: k-means of patch tokens, whose clusters are matched to classes and scored."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int, Int64, Integer, Real, UInt8
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from selfpatch.errors import UserError
from selfpatch.evaluation.datasets.labeled_images import LabeledImage, spread
from selfpatch.evaluation.datasets.segmentation import SegmentationData, read_segmentation
from selfpatch.evaluation.features import (
    Backbone,
    RowBuffer,
    batches,
    eval_mode,
    floor_to_patch_multiple,
    normalized,
    patch_features,
    prefetch,
    resize_image,
    resize_mask,
)
from selfpatch.evaluation.metrics import IGNORED, iou_of_pairs, segmentation_metrics
from selfpatch.evaluation.protocols.overclustering import Overclustering
from selfpatch.evaluation.segmentation.k_means import k_means, nearest_center
from selfpatch.evaluation.segmentation.prediction_pictures import write_prediction_sheets
from selfpatch.evaluation.segmentation.segmentation_scores import NUM_SHOWN, Prediction
from selfpatch.evaluation.task import EvalContext, EvalOutput

PROJECTED_AT_ONCE = 2**16  # tokens


def run(backbone: Backbone, root: Path, protocol: Overclustering, context: EvalContext) -> EvalOutput:
    """Cluster the patches of all validation images together, match clusters to classes, and score the matches.

    For each K the metrics hold the mean ("mIoU/K=500") and the standard deviation ("spread/K=500") over the seeds.

    Raises:
        UserError: more clusters than patches; or the data are not complete and consistent.

    Source: Leopart (CVPR 2022); MkuuWaUjinga/leopart experiments/overcluster. Validation images alone, squeezed to a
    square; tokens through the final norm are standardised and reduced by PCA without whitening; plain (not spherical)
    k-means from random patches; cluster maps, as coarse as the patch grid, and masks are brought to mask_size with
    the nearest neighbour; pixels that are not scored are left out; IoU over all images together.
    Differs: see `Overclustering.differs`.
    """
    data = read_segmentation(root, max_images=protocol.max_images, report=context.report, pixels=backbone.pixels)
    size = floor_to_patch_multiple(protocol.image_size, backbone.patch_size)
    grid_size = size[0] // backbone.patch_size[0], size[1] // backbone.patch_size[1]
    counts_of_clusters = [data.num_classes if k == "classes" else k for k in protocol.num_clusters]
    num_patches = len(data.val) * grid_size[0] * grid_size[1]
    if num_patches < max(counts_of_clusters):
        raise UserError(
            f"{len(data.val)} validation images have {num_patches} patches together, which do not make "
            f"{max(counts_of_clusters)} clusters; lower num-clusters, or enlarge image-size or max-images"
        )
    # Every clustering moves the progress bar as far as encoding all images.
    total = len(data.val) * (1 + len(counts_of_clusters) * protocol.num_seeds)
    done = 0

    # 1. Tokens of all images, on the CPU: 1.7 GiB for the 1,449 of VOC and ViT-S/16.
    tokens, masks = RowBuffer(num_patches), []
    with eval_mode(backbone):
        for pixels, of_batch in read_images(data, size, protocol):
            images = normalized(pixels.to(context.device), backbone.mean, backbone.std)
            tokens.add(patch_features(backbone, images).flatten(2).transpose(1, 2).flatten(0, 1).cpu())
            masks.append(of_batch)
            done += len(of_batch)
            context.report(done, total)
    components = principal_components(tokens.rows, protocol.num_components, device=context.device)
    del tokens
    truth = torch.cat(masks)

    # 2. Clusters, and their scores as classes.
    metrics: dict[str, float] = {}
    for name, num_clusters in zip(protocol.num_clusters, counts_of_clusters, strict=True):
        scores = []
        for i in range(protocol.num_seeds):
            centers = k_means(
                components,
                num_clusters,
                num_restarts=protocol.num_restarts,
                num_iterations=protocol.num_iterations,
                max_points=num_clusters * protocol.max_patches_per_cluster,
                seed=protocol.seed + i,
            )
            labels, _ = nearest_center(components, centers)
            clusters = labels.cpu().unflatten(0, (len(data.val), *grid_size))
            counts = count_pairs(resize_maps(clusters, protocol.mask_size), truth, num_clusters, data.num_classes)
            class_of = one_to_one(counts) if num_clusters == data.num_classes else many_to_one(counts)
            scores.append(segmentation_metrics(confusion_by_class(counts, class_of), data.class_names)["mIoU"])
            if i == 0:
                shown = named_maps(data, clusters, class_of)
                write_prediction_sheets(shown, data, context.pictures / f"K_{name}")
            done += len(data.val)
            context.report(done, total)
        metrics |= {f"mIoU/K={name}": float(np.mean(scores)), f"spread/K={name}": float(np.std(scores))}
    details = {"num_patches": num_patches, "num_components_kept": components.shape[1]}
    spreads = [f"spread/K={name}" for name in protocol.num_clusters]
    return EvalOutput(metrics, data.describe(), details, lower_is_better=spreads)


class Batch(NamedTuple):
    pixels: Real[Tensor, "B H W _c"]
    masks: UInt8[Tensor, "B M M"]


def read_images(data: SegmentationData, size: tuple[int, int], protocol: Overclustering) -> Iterator[Batch]:
    """Images of (rows, columns) pixels, and masks resized to the size of the images and then to mask_size."""

    def read(item: LabeledImage) -> tuple[Real[np.ndarray, "H W _c"], UInt8[np.ndarray, "H W"]]:
        return resize_image(data.read_image(item), size), resize_mask(data.read_mask(item), size)

    for samples in prefetch(read, batches(data.val, protocol.batch_size)):
        images, masks = (torch.from_numpy(np.stack(arrays)) for arrays in zip(*samples, strict=True))
        yield Batch(images, resize_maps(masks, protocol.mask_size))


def resize_maps(maps: Integer[Tensor, "B H W"], side: int) -> Integer[Tensor, "B M M"]:
    """Resize to a square by the nearest value: index i of M takes index floor(i * H / M) of H."""
    rows, columns = (torch.arange(side) * length // side for length in maps.shape[1:])
    return maps[:, rows[:, None], columns]


def principal_components(
    tokens: Float[Tensor, "N D"], num_components: int, *, device: torch.device
) -> Float[Tensor, "N P"]:
    """Principal components of the standardised tokens; D of them at most.

    A dimension that is constant over all tokens becomes 0.
    """
    # Standardising and projecting are one affine map: z = (x - mean) / std, and the directions are eigenvectors of z's
    # covariance, which is (E[x x^T] - mean mean^T) / (std std^T).
    chunks = tokens.split(PROJECTED_AT_ONCE)  # never all of them in float64
    mean = torch.stack([chunk.sum(dim=0, dtype=torch.float64) for chunk in chunks]).sum(dim=0) / len(tokens)
    covariance = torch.zeros(tokens.shape[1], tokens.shape[1], dtype=torch.float64)
    for chunk in chunks:
        centered = chunk - mean
        covariance += centered.T @ centered / len(tokens)
    variance = covariance.diagonal()
    std = torch.where(variance > 0, variance, 1).sqrt()
    _, directions = torch.linalg.eigh(covariance / (std[:, None] * std))  # ascending
    projection = directions[:, -num_components:].flip(1) / std[:, None]
    mean, projection = mean.float().to(device), projection.float().to(device)
    return torch.cat([(chunk.to(device) - mean) @ projection for chunk in chunks])


def count_pairs(
    clusters: Int64[Tensor, "*S"], truth: UInt8[Tensor, "*S"], num_clusters: int, num_classes: int
) -> Int64[np.ndarray, "K C"]:
    """Number of pixels per cluster and true class, without those labeled IGNORED."""
    scored = truth != IGNORED
    pairs = clusters[scored] * num_classes + truth[scored]
    return torch.bincount(pairs, minlength=num_clusters * num_classes).reshape(num_clusters, num_classes).numpy()


def one_to_one(counts: Int64[np.ndarray, "C C"]) -> Int[np.ndarray, " C"]:
    """Class of each cluster, every class once, with the largest sum of IoUs (Hungarian matching)."""
    _, class_of = linear_sum_assignment(iou_of_pairs(counts.astype(np.float64)), maximize=True)
    return class_of


def many_to_one(counts: Int64[np.ndarray, "K C"]) -> Int[np.ndarray, " K"]:
    """Class of each cluster with the largest fraction of its pixels (precision), the first of equal ones."""
    return counts.argmax(axis=1)


def confusion_by_class(counts: Int64[np.ndarray, "K C"], class_of: Int[np.ndarray, " K"]) -> Int64[Tensor, "C C"]:
    """Number of pixels per true class (rows) and class of their cluster (columns)."""
    confusion = np.zeros((counts.shape[1], counts.shape[1]), np.int64)
    np.add.at(confusion.T, class_of, counts)
    return torch.from_numpy(confusion)


def named_maps(
    data: SegmentationData, clusters: Int64[Tensor, "B R S"], class_of: Int[np.ndarray, " K"]
) -> list[Prediction]:
    """Predictions of a few images at their own size: the class of each pixel's cluster."""
    map_of = dict(zip(data.val, clusters.numpy(), strict=True))
    named = {item: class_of[map_of[item]].astype(np.uint8) for item in spread(data.val, NUM_SHOWN)}
    return [Prediction(item, data.read_mask(item), resize_mask(classes, item.size)) for item, classes in named.items()]
