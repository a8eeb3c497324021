"""Linear segmentation: one linear layer on frozen patch tokens."""

import copy
import math
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Real, UInt8
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from selfpatch.data.loading.sampler import sample_rng
from selfpatch.errors import UserError
from selfpatch.evaluation.class_bars import write_class_bars
from selfpatch.evaluation.datasets.segmentation import SegmentationData, read_segmentation
from selfpatch.evaluation.feature_cache import unwrap_cache
from selfpatch.evaluation.features import (
    Backbone,
    ReadCache,
    eval_mode,
    floor_to_patch_multiple,
    patch_features,
)
from selfpatch.evaluation.head_training import resume_key, seeded, train_head
from selfpatch.evaluation.metrics import pixel_loss
from selfpatch.evaluation.protocols.linear_segmentation import LeopartSegmentation, LinearSegmentation
from selfpatch.evaluation.segmentation.leopart_segmentation import evaluate_leopart
from selfpatch.evaluation.segmentation.prediction_pictures import write_prediction_sheets
from selfpatch.evaluation.segmentation.segmentation_scores import SegmentationScores, evaluate_several
from selfpatch.evaluation.segmentation.sliding_window import encode_windows, merge_windows
from selfpatch.evaluation.segmentation.training_crops import collate, photometric_distortion, random_crop
from selfpatch.evaluation.task import EvalContext, EvalOutput, TrainedHead
from selfpatch.output.atomic_files import atomic_write
from selfpatch.training.loop import PeriodicCallback

Sample = tuple[Real[np.ndarray, "_ _ _c"], UInt8[np.ndarray, "_ _"]]  # image and mask

WARMUP_START = 1e-6  # fraction of the learning rate at step 0, in both protocols


def run(
    backbone: Backbone, root: Path, protocol: LinearSegmentation | LeopartSegmentation, context: EvalContext
) -> EvalOutput:
    data = read_segmentation(root, max_images=protocol.max_images, report=context.report, pixels=backbone.pixels)
    evaluate = evaluate_leopart if isinstance(protocol, LeopartSegmentation) else evaluate_linear_segmentation
    scores = evaluate(backbone, data, protocol, context)
    write_prediction_sheets(scores.predictions, data, context.pictures)
    write_class_bars(scores.metrics, context.pictures)
    return EvalOutput(scores.metrics, data.describe(), scores.details)


class LinearHead(nn.Module):
    """Channel dropout, batch norm and one linear layer, patch by patch."""

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
    backbone: Backbone, data: SegmentationData, protocol: LinearSegmentation, context: EvalContext
) -> SegmentationScores:
    """Train the layer on the training images, and score it on the validation images at their own size.

    With `eval_interval` the layer is scored as it was at every validation step, and the best score is reported: the
    backbone is frozen, so one pass over the images after the training serves them all.

    Source: facebookresearch/dinov3 eval/segmentation; facebookresearch/dinov2 for its preset.
    Differs: see `LinearSegmentation.differs`.
    """
    with eval_mode(backbone):
        heads = train_heads(backbone, data, protocol, context)

        def predict_logits(image: Float[Tensor, "_c H W"]) -> Iterator[Float[Tensor, "C H W"]]:
            return linear_logits(backbone, protocol, list(heads.values()), image)

        meters = evaluate_several(data, backbone, protocol, predict_logits, len(heads), context)
    scores = dict(zip(heads, (meter.scores() for meter in meters), strict=True))
    best = max(scores, key=lambda step: scores[step].metrics["mIoU"])  # the first of equal ones
    if context.keep_head is not None:
        context.keep_head(
            TrainedHead("linear-segmentation", heads[best], unwrap_cache(backbone), protocol, list(data.class_names))
        )
    if len(scores) == 1:
        return scores[best]
    by_step = {str(step): of_step.metrics["mIoU"] for step, of_step in scores.items()}
    return scores[best]._replace(details={"best_step": best, "mIoU_by_step": by_step})


def linear_logits(
    backbone: Backbone, protocol: LinearSegmentation, heads: Sequence[nn.Module], image: Float[Tensor, "_c H W"]
) -> Iterator[Float[Tensor, "C H W"]]:
    """The logits of every head for a normalized image, by windows; call it within `eval_mode`."""
    window = crop_size(protocol, backbone.patch_size)
    encoded = encode_windows(
        image,
        lambda windows: padded_features(backbone, windows),
        window=window,
        stride=protocol.stride,
        batch_size=protocol.batch_size,
    )
    windows = list(encoded)  # small beside their logits, and the same for all heads
    for head in heads:
        yield merge_windows(windows, partial(upsampled_logits, head, size=window), image.shape[1:])


def crop_size(protocol: LinearSegmentation, patch_size: tuple[int, int]) -> tuple[int, int]:
    """Side of training crops and test windows: (rows, columns) in pixels."""
    floor = floor_to_patch_multiple(protocol.image_size, patch_size)
    return (protocol.image_size, protocol.image_size) if protocol.patch_fit == "center_pad" else floor


def padded_features(backbone: Backbone, images: Float[Tensor, "B _c h w"]) -> Float[Tensor, "B D R S"]:
    return patch_features(backbone, center_pad(images, backbone.patch_size))


def center_pad(images: Float[Tensor, "B _c H W"], patch_size: tuple[int, int]) -> Float[Tensor, "B _c H2 W2"]:
    """Zeros, the mean color, on all sides up to whole patches; an odd pixel goes to the right and below.

    Feature maps keep the patches of the padding: the original stretches them over the image as it was.

    Source: CenterPadding of facebookresearch/dinov2 dinov2/hub/utils.py.
    """
    bottom, right = (-side % patch for side, patch in zip(images.shape[2:], patch_size, strict=True))
    return F.pad(images, (right // 2, right - right // 2, bottom // 2, bottom - bottom // 2))


@torch.no_grad()
def upsampled_logits(
    head: nn.Module, feature_map: Float[Tensor, "B D R S"], *, size: tuple[int, int]
) -> Float[Tensor, "B C h w"]:
    return F.interpolate(head(feature_map), size=size, mode="bilinear")


def train_heads(
    backbone: Backbone, data: SegmentationData, protocol: LinearSegmentation, context: EvalContext
) -> dict[int, LinearHead]:
    """The layer at every validation step, in eval mode, by the number of steps done; call it within `eval_mode`.

    They are kept in OUT/heads, so that a training that is done, or goes on, need not repeat them.
    """
    read = ReadCache(lambda item: (data.read_image(item), data.read_mask(item)))
    size = crop_size(protocol, backbone.patch_size)

    def sample(epoch: int, index: int) -> Sample:
        rng = sample_rng(protocol.seed, epoch, index)
        image, mask = read(data.train[index])
        image, mask = random_crop(image, mask, rng, protocol, size=size)
        if protocol.photometric_distortion:
            image = photometric_distortion(image, rng, style=protocol.photometric_style)
        return image, mask

    def losses(samples: list[Sample]) -> dict[str, Float[Tensor, ""]]:
        images, masks = collate(samples, size, backbone.mean, backbone.std, device=context.device)
        return {"segmentation": pixel_loss(head(padded_features(unwrap_cache(backbone), images)), masks)}

    def keep_head(step: int) -> dict[str, float]:
        path = head_file(context.out, step)
        path.parent.mkdir(exist_ok=True)
        with atomic_write(path) as temporary:
            save_file({name: value.cpu().contiguous() for name, value in head.state_dict().items()}, temporary)
        return {}

    with seeded(protocol.seed, context.device):
        head = LinearHead(backbone.embed_dim, data.num_classes, dropout=protocol.dropout).to(context.device)
    identity = resume_key("linear-segmentation", protocol, data.training_fingerprint(), backbone)
    del identity["protocol"]["stride"]  # of the test alone: a head that is done may be scored by another one
    interval = protocol.eval_interval or protocol.steps
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
        callbacks=[PeriodicCallback(interval, keep_head)] if interval < protocol.steps else [],
    )
    heads = {step: read_head(head, context.out, step) for step in range(interval, protocol.steps, interval)}
    return heads | {protocol.steps: head}


def head_file(out: Path, step: int) -> Path:
    return out / "heads" / f"step-{step:08d}.safetensors"


def read_head(like: LinearHead, out: Path, step: int) -> LinearHead:
    """
    Raises:
        UserError: it is not there any more.
    """
    path = head_file(out, step)
    if not path.is_file():
        raise UserError(
            f"{path}, the layer after {step} steps, is gone, and without it the best validation is not known; give a "
            "new folder (--out) to train again, or --eval-interval None there"
        )
    head = copy.deepcopy(like)
    head.load_state_dict(load_file(path))
    return head


def learning_rate(step: int, protocol: LinearSegmentation) -> float:
    """Linear warm-up times a line to 0 at the last step; then that line (poly) or half a cosine (one-cycle).

    Source: mmcv's PolyLrUpdaterHook with a linear warm-up; DINOv3's WarmupOneCycleLR, whose cosine begins with the
    warm-up.
    """
    line = protocol.lr * (1 - step / protocol.steps)
    if step < protocol.warmup_steps:
        return line * (WARMUP_START + (1 - WARMUP_START) * step / protocol.warmup_steps)
    if protocol.schedule == "poly":
        return line
    return protocol.lr * (1 + math.cos(math.pi * (step + 1) / protocol.steps)) / 2
