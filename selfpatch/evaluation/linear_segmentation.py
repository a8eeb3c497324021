"""Segmentation by one linear layer on frozen patch tokens: how far apart the classes are without any help."""

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from selfpatch.data.plan import Plan, sample_rng
from selfpatch.evaluation.class_bars import write_class_bars
from selfpatch.evaluation.datasets.segmentation_folder import SegmentationFolder
from selfpatch.evaluation.features import (
    Backbone,
    Cached,
    evaluating,
    fit_to_patches,
    patch_features,
    read_ahead,
)
from selfpatch.evaluation.metrics import IGNORED
from selfpatch.evaluation.prediction_pictures import write_prediction_sheets
from selfpatch.evaluation.protocols.linear_segmentation import LinearSegmentation
from selfpatch.evaluation.segmentation_scores import SegmentationScores, score_images
from selfpatch.evaluation.sliding_window import sliding_window
from selfpatch.evaluation.task import Context, Outcome, Report, no_report
from selfpatch.evaluation.training_crops import assemble, distort_colors, random_crop

WARMUP_START = 1e-6  # share of the learning rate at step 0, of both protocols


def run(backbone: Backbone, root: Path, protocol: LinearSegmentation, context: Context) -> Outcome:
    data = SegmentationFolder(root, max_images=protocol.max_images)
    scores = evaluate_linear_segmentation(backbone, data, protocol, device=context.device, report=context.report)
    write_prediction_sheets(scores.predictions, data, context.pictures)
    write_class_bars(scores.metrics, context.pictures)
    return Outcome(scores.metrics, data.facts())


class LinearHead(nn.Module):
    """Dropout of channels, batch norm and one linear layer on every patch."""

    def __init__(self, embed_dim: int, num_classes: int, *, dropout: float):
        super().__init__()
        self.dropout = nn.Dropout2d(dropout)
        self.norm = nn.BatchNorm2d(embed_dim)
        self.linear = nn.Conv2d(embed_dim, num_classes, kernel_size=1)
        nn.init.normal_(self.linear.weight, std=0.01)
        nn.init.zeros_(self.linear.bias)

    def forward(self, feature_map: Float[Tensor, "B D R S"]) -> Float[Tensor, "B C R S"]:
        return self.linear(self.norm(self.dropout(feature_map)))


def evaluate_linear_segmentation(
    backbone: Backbone,
    data: SegmentationFolder,
    protocol: LinearSegmentation,
    *,
    device: torch.device | str = "cpu",
    report: Report = no_report,
) -> SegmentationScores:
    """Train the layer on the training images, score it on the validation images at their own size.

    Source: facebookresearch/dinov3 eval/segmentation; facebookresearch/dinov2 for its preset.
    """
    device = torch.device(device)
    window = fit_to_patches(protocol.image_size, backbone.patch_size)
    with evaluating(backbone):
        head = train_head(backbone, data, protocol, device=device, report=report)

        @torch.no_grad()
        def predict(windows: Float[Tensor, "B 3 h w"]) -> Float[Tensor, "B C h w"]:
            return F.interpolate(head(patch_features(backbone, windows)), size=window, mode="bilinear")

        def logits_of(image: Float[Tensor, "3 H W"]) -> Float[Tensor, "C H W"]:
            return sliding_window(image, predict, window=window, stride=protocol.stride, batch_size=protocol.batch_size)

        return score_images(data, backbone, protocol, logits_of, device=device, report=report, done=protocol.steps)


def train_head(
    backbone: Backbone,
    data: SegmentationFolder,
    protocol: LinearSegmentation,
    *,
    device: torch.device,
    report: Report,
) -> LinearHead:
    """The trained layer, in eval mode. Its random numbers follow from the seed; the global ones stay as they were."""
    read = Cached(lambda item: (data.read_image(item), data.read_mask(item)))
    size = fit_to_patches(protocol.image_size, backbone.patch_size)

    def sample(place: tuple[int, int]) -> tuple[UInt8[np.ndarray, "h w 3"], UInt8[np.ndarray, "h w"]]:
        epoch, index = place
        rng = sample_rng(protocol.seed, epoch, index)
        image, mask = read(data.train[index])
        image, mask = random_crop(image, mask, rng, protocol, size=size)
        return (distort_colors(image, rng) if protocol.distort_colors else image), mask

    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(protocol.seed)
        head = LinearHead(backbone.embed_dim, data.num_classes, dropout=protocol.dropout).to(device)
        optimizer = torch.optim.AdamW(head.parameters(), weight_decay=protocol.weight_decay)
        for step, samples in enumerate(read_ahead(sample, training_places(len(data.train), protocol))):
            images, masks = assemble(samples, size, backbone.mean, backbone.std, device=device)
            logits = F.interpolate(head(patch_features(backbone, images)), size=size, mode="bilinear")
            # Not the mean that cross_entropy takes: of a batch without one scored pixel that is nan.
            loss = F.cross_entropy(logits, masks, ignore_index=IGNORED, reduction="sum")
            loss = loss / (masks != IGNORED).sum().clamp(min=1)
            optimizer.zero_grad()
            loss.backward()
            if protocol.clip_norm:
                nn.utils.clip_grad_norm_(head.parameters(), protocol.clip_norm)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, protocol)
            optimizer.step()
            report(step + 1, protocol.steps + len(data.val))
    return head.eval()


def training_places(num_images: int, protocol: LinearSegmentation) -> Iterator[list[tuple[int, int]]]:
    """(epoch, index) of the images of every step. Batches run on over the ends of epochs, so images may be few."""
    plan = Plan(num_images, 1, protocol.seed)
    for step in range(protocol.steps):
        positions = range(step * protocol.batch_size, (step + 1) * protocol.batch_size)
        yield [(plan.epoch(position), int(plan.indices(position)[0])) for position in positions]


def learning_rate(step: int, protocol: LinearSegmentation) -> float:
    """Warm-up on a line that falls to 0 at the end of training; then that line (poly) or half a cosine (one-cycle).

    Source: mmcv's PolyLrUpdaterHook with a linear warm-up; DINOv3's WarmupOneCycleLR, whose cosine begins with the
    warm-up.
    """
    line = protocol.lr * (1 - step / protocol.steps)
    if step < protocol.warmup_steps:
        return line * (WARMUP_START + (1 - WARMUP_START) * step / protocol.warmup_steps)
    if protocol.schedule == "poly":
        return line
    return protocol.lr * (1 + math.cos(math.pi * (step + 1) / protocol.steps)) / 2
