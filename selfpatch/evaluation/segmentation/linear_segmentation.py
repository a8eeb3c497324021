"""Segmentation by one linear layer on frozen patch tokens: how far apart the classes are without any help."""

import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from selfpatch.data.loading.sampler import sample_rng
from selfpatch.evaluation.class_bars import write_class_bars
from selfpatch.evaluation.datasets.segmentation import SegmentationData, read_segmentation
from selfpatch.evaluation.feature_cache import unwrap_cache
from selfpatch.evaluation.features import (
    Backbone,
    Cached,
    eval_mode,
    floor_to_patch_multiple,
    patch_features,
)
from selfpatch.evaluation.head_training import resume_key, seeded, train_head
from selfpatch.evaluation.metrics import mean_cross_entropy
from selfpatch.evaluation.protocols.linear_segmentation import LeopartSegmentation, LinearSegmentation
from selfpatch.evaluation.segmentation.leopart_segmentation import evaluate_leopart
from selfpatch.evaluation.segmentation.prediction_pictures import write_prediction_sheets
from selfpatch.evaluation.segmentation.segmentation_scores import SegmentationScores, evaluate_images
from selfpatch.evaluation.segmentation.sliding_window import sliding_window
from selfpatch.evaluation.segmentation.training_crops import assemble, photometric_distortion, random_crop
from selfpatch.evaluation.task import Context, EvalOutput

Sample = tuple[UInt8[np.ndarray, "_ _ 3"], UInt8[np.ndarray, "_ _"]]  # image and mask

WARMUP_START = 1e-6  # share of the learning rate at step 0, of both protocols


def run(
    backbone: Backbone, root: Path, protocol: LinearSegmentation | LeopartSegmentation, context: Context
) -> EvalOutput:
    data = read_segmentation(root, max_images=protocol.max_images, report=context.report)
    evaluate = evaluate_leopart if isinstance(protocol, LeopartSegmentation) else evaluate_linear_segmentation
    scores = evaluate(backbone, data, protocol, context)
    write_prediction_sheets(scores.predictions, data, context.pictures)
    write_class_bars(scores.metrics, context.pictures)
    return EvalOutput(scores.metrics, data.facts())


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
    backbone: Backbone, data: SegmentationData, protocol: LinearSegmentation, context: Context
) -> SegmentationScores:
    """Train the layer on the training images, score it on the validation images at their own size.

    Source: facebookresearch/dinov3 eval/segmentation; facebookresearch/dinov2 for its preset.
    """
    window = floor_to_patch_multiple(protocol.image_size, backbone.patch_size)
    with eval_mode(backbone):
        head = train_layer(backbone, data, protocol, context)

        @torch.no_grad()
        def predict(windows: Float[Tensor, "B 3 h w"]) -> Float[Tensor, "B C h w"]:
            return F.interpolate(head(patch_features(backbone, windows)), size=window, mode="bilinear")

        def predict_logits(image: Float[Tensor, "3 H W"]) -> Float[Tensor, "C H W"]:
            return sliding_window(image, predict, window=window, stride=protocol.stride, batch_size=protocol.batch_size)

        return evaluate_images(data, backbone, protocol, predict_logits, context)


def train_layer(
    backbone: Backbone, data: SegmentationData, protocol: LinearSegmentation, context: Context
) -> LinearHead:
    """The trained layer, in eval mode; call it within `eval_mode`."""
    read = Cached(lambda item: (data.read_image(item), data.read_mask(item)))
    size = floor_to_patch_multiple(protocol.image_size, backbone.patch_size)

    def sample(epoch: int, index: int) -> Sample:
        rng = sample_rng(protocol.seed, epoch, index)
        image, mask = read(data.train[index])
        image, mask = random_crop(image, mask, rng, protocol, size=size)
        return (photometric_distortion(image, rng) if protocol.photometric_distortion else image), mask

    def losses(samples: list[Sample]) -> dict[str, Float[Tensor, ""]]:
        images, masks = assemble(samples, size, backbone.mean, backbone.std, device=context.device)
        logits = F.interpolate(head(patch_features(unwrap_cache(backbone), images)), size=size, mode="bilinear")
        return {"segmentation": mean_cross_entropy(logits, masks)}

    with seeded(protocol.seed, context.device):
        head = LinearHead(backbone.embed_dim, data.num_classes, dropout=protocol.dropout).to(context.device)
    identity = resume_key("linear-segmentation", protocol, data.training_fingerprint(), backbone)
    del identity["protocol"]["stride"]  # of the test alone: a head that is done may be scored by another one
    train_head(
        head,
        torch.optim.AdamW(head.parameters(), weight_decay=protocol.weight_decay),
        losses,
        sample,
        num_samples=len(data.train),
        batch_size=protocol.batch_size,
        steps=protocol.steps,
        lr=lambda step: learning_rate(step, protocol),
        clip_norm=protocol.clip_norm,
        seed=protocol.seed,
        identity=identity,
        context=context,
        precision="float32",
    )
    return head


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
