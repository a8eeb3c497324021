"""Detection and instance segmentation: a copy of the backbone is fine-tuned with Mask R-CNN on COCO."""

import copy
import dataclasses
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from selfpatch.backbones.backbone import Backbone
from selfpatch.data.loading.sampler import sample_rng
from selfpatch.errors import UserError
from selfpatch.evaluation.class_bars import write_class_bars
from selfpatch.evaluation.datasets.coco import CocoDetection
from selfpatch.evaluation.datasets.coco_annotations import CocoImage
from selfpatch.evaluation.datasets.labeled_images import spread
from selfpatch.evaluation.detection.detection_pictures import DetectedImage, write_detection_sheets
from selfpatch.evaluation.detection.detection_samples import (
    Sample,
    augment,
    collate,
    read_sample,
    to_targets,
)
from selfpatch.evaluation.detection.detection_scores import KINDS, ResultEntry, coco_metrics, result_entries
from selfpatch.evaluation.detection.detector import Detector
from selfpatch.evaluation.features import batches, keep_ratio_size, prefetch, resize_image
from selfpatch.evaluation.head_training import train_head
from selfpatch.evaluation.protocols.mask_rcnn import MaskRCNN
from selfpatch.evaluation.task import EvalContext, EvalOutput, ProgressFn, no_progress
from selfpatch.optim.schedules import Schedule, warmup_multistep

NUM_SHOWN = 8
LR_FACTOR = 0.1  # at each of decay_epochs

# Parts of the names of parameters without weight decay, besides norms of the backbone. Biases decay.
NO_DECAY = ("pos_embed", "cls_token", "reg_token", "relative_position_bias_table")
# Settings that affect only the test, or memory.
WITHOUT_EFFECT_ON_WEIGHTS = (
    "recompute", "rpn_pre_nms_top_n_test", "rpn_post_nms_top_n_test", "score_threshold", "nms", "max_boxes",
)  # fmt: skip


def run(backbone: Backbone, root: Path, protocol: MaskRCNN, context: EvalContext) -> EvalOutput:
    """Train a copy of the backbone as a detector, or go on from context.out; score the validation images.

    Writes OUT/detections.json in COCO's format of results, and pictures of a few images.

    Raises:
        UserError: the data are not complete, too few for the warm-up, or do not fit the backbone.

    Source: alinlab/SelfPatch detection/; mmdetection's Mask R-CNN; detectron2's ViTDet.
    Differs: see `MaskRCNN.differs`.
    """
    data = CocoDetection(root, max_images=protocol.max_images)
    steps = num_steps(data, protocol)
    detector = build_detector(backbone, data.num_classes, protocol).to(context.device)
    train(detector, data, protocol, context, identity=identity(data, protocol), steps=steps)
    results, shown = detect_images(detector, data, protocol, context.device, context.report)
    (context.out / "detections.json").write_text(json.dumps(results), encoding="utf-8")
    metrics = coco_metrics(data.val, results, data.category_ids, data.class_names)
    write_detection_sheets(shown, data.class_names, data.category_ids, context.pictures)
    for kind in KINDS:
        name = f"{kind}/AP"
        write_class_bars(metrics, context.pictures, score=name, mean=name, file=f"class_{kind}_ap.png")
    details = {
        "steps": steps,
        "out_indices": detector.out_indices,
        "strides_px": detector.strides,
        "num_heads": detector.backbone.num_heads,
        "num_parameters": sum(parameter.numel() for parameter in detector.parameters()),
    }
    return EvalOutput(metrics, data.describe(), details)


def num_steps(data: CocoDetection, protocol: MaskRCNN) -> int:
    steps = max(1, round(protocol.epochs * len(data.train) / protocol.batch_size))
    if protocol.warmup_steps >= steps:
        raise UserError(
            f"warmup-steps is {protocol.warmup_steps}, but {protocol.epochs:g} epochs of {len(data.train)} images, "
            f"{protocol.batch_size} at once, are {steps} steps; lower warmup-steps, or make epochs more"
        )
    return steps


def build_detector(backbone: Backbone, num_classes: int, protocol: MaskRCNN) -> Detector:
    """A detector on a copy of the backbone, its start a function of the seed; global random numbers stay as they were.

    The backbone's number of attention heads stays what it is. SelfPatch's own configuration writes num_heads=8 where
    the pretrained ViT-S/16 has 6: its weights load without a word, and every head then reads 48 instead of 64 channels
    of the queries, keys and values. The published numbers are of that. `protocol.upstream_heads` 8 does the same, to
    reproduce them and for nothing else.

    Raises:
        UserError: the backbone's stages do not fit, or it cannot be cut into so many heads.
    """
    trained = copy.deepcopy(backbone)
    if protocol.upstream_heads is not None:
        trained.set_num_heads(protocol.upstream_heads)
    trained.set_drop_path(protocol.drop_path)
    trained.remove_final_norm()
    trained.set_activation_checkpointing("full" if protocol.recompute else "none")
    with torch.random.fork_rng([]):
        torch.manual_seed(protocol.seed)
        return Detector(trained, num_classes, protocol)


def train(
    detector: Detector,
    data: CocoDetection,
    protocol: MaskRCNN,
    context: EvalContext,
    *,
    identity: dict[str, Any],
    steps: int,
) -> None:
    def sample(epoch: int, index: int) -> Sample:
        return augment(read_sample(data.train[index]), sample_rng(protocol.seed, epoch, index), protocol)

    def losses(samples: list[Sample]) -> dict[str, Tensor]:
        images = [sample.image for sample in samples]
        batch = pad(images, detector, protocol, context.device)
        sizes = [sample.size for sample in samples]
        return detector.losses(batch, sizes, [to_targets(sample, context.device) for sample in samples])

    train_head(
        detector,
        torch.optim.AdamW(parameter_groups(detector, protocol)),
        losses,
        sample,
        num_samples=len(data.train),
        batch_size=protocol.batch_size,
        steps=steps,
        lr=learning_rate(data, protocol),
        clip_norm=protocol.clip_norm,
        seed=protocol.seed,
        identity=identity,
        context=context,
        precision=protocol.precision,
        accumulate=protocol.accumulate,
    )


def pad(
    images: Sequence[UInt8[np.ndarray, "_ _ 3"]], detector: Detector, protocol: MaskRCNN, device: torch.device
) -> Float[Tensor, "B 3 H W"]:
    backbone, divisor = detector.backbone, detector.size_divisor
    return collate(
        images, backbone.mean, backbone.std, size_divisor=divisor, square_pad=protocol.square_pad, device=device
    )


def learning_rate(data: CocoDetection, protocol: MaskRCNN) -> Schedule:
    milestones = [round(epoch * len(data.train) / protocol.batch_size) for epoch in protocol.decay_epochs]
    return warmup_multistep(
        protocol.lr,
        milestones=milestones,
        factor=LR_FACTOR,
        warmup_steps=protocol.warmup_steps,
        start=protocol.lr * protocol.warmup_start,
    )


def parameter_groups(detector: Detector, protocol: MaskRCNN) -> list[dict[str, Any]]:
    """AdamW's groups by weight decay and by depth; "lr_scale" is a group's factor on the learning rate.

    Norms of the neck and of the heads decay, as in the programs: mmdetection goes by "norm" in a name, which the batch
    norm of XCiT's neck has not (fpn1.1), and detectron2 by torch's types of norms, of which its own LayerNorm is none.
    """
    norms = {
        id(parameter)
        for module in detector.backbone.modules()
        if "Norm" in type(module).__name__
        for parameter in module.parameters(recurse=False)
    }
    depth = layer_depths(detector)
    groups: dict[tuple[bool, float], dict[str, Any]] = {}
    for name, parameter in detector.named_parameters():
        if not parameter.requires_grad:
            continue
        decays = id(parameter) not in norms and not any(part in name for part in NO_DECAY)
        scale = protocol.layer_decay ** (max(depth.values()) - depth[name])
        weight_decay = protocol.weight_decay if decays else 0.0
        group = groups.setdefault((decays, scale), {"params": [], "weight_decay": weight_decay, "lr_scale": scale})
        group["params"].append(parameter)
    return list(groups.values())


def layer_depths(detector: Detector) -> dict[str, int]:
    """Depth of each parameter: 0 before the first block, one more per block, and one more for the detector.

    Source: detectron2's get_vit_lr_decay_rate; blocks of a pyramid are numbered through, what lies between its stages
    goes with the block before.
    """
    depths, num_blocks = {}, 0
    seen: dict[str, int] = {}
    for name, _ in detector.named_parameters():
        if not name.startswith("backbone."):
            continue
        if block := re.match(r".*?blocks\.\d+\.", name):
            num_blocks = seen.setdefault(block[0], num_blocks + 1)
        depths[name] = num_blocks
    return {name: depths.get(name, num_blocks + 1) for name, _ in detector.named_parameters()}


def identity(data: CocoDetection, protocol: MaskRCNN) -> dict[str, Any]:
    """Values that a checkpoint must share with the run that resumes it, besides the initial weights."""
    settings = dataclasses.asdict(protocol)
    for later in WITHOUT_EFFECT_ON_WEIGHTS:
        del settings[later]
    # As they come back from a checkpoint: tuples are lists there.
    return json.loads(json.dumps({"protocol": settings, "data": data.training_fingerprint()}))


class _Read(NamedTuple):
    item: CocoImage
    image: UInt8[np.ndarray, "H W 3"]
    resized: UInt8[np.ndarray, "h w 3"]


def detect_images(
    detector: Detector,
    data: CocoDetection,
    protocol: MaskRCNN,
    device: torch.device,
    report: ProgressFn = no_progress,
) -> tuple[list[ResultEntry], list[DetectedImage]]:
    """Detections on all validation images, and a few images to look at, spread evenly.

    One image at a time, as mmdetection does: what an image is padded with depends on no other.
    """
    detector.eval()
    to_show = {item.id for item in spread(data.val, NUM_SHOWN)}
    results, shown = [], []

    def read(item: CocoImage) -> _Read:
        image = item.read()
        return _Read(
            item, image, resize_image(image, keep_ratio_size(item.size, protocol.image_size, protocol.long_side))
        )

    for done, [(item, image, resized)] in enumerate(prefetch(read, batches(data.val, 1)), start=1):
        size = resized.shape[0], resized.shape[1]
        batch = pad([resized], detector, protocol, device)
        (found,) = detector.detect(batch, [size])
        entries = result_entries(item, found, size, data.category_ids)
        results += entries
        if item.id in to_show:
            shown.append(DetectedImage(item, image, entries))
        report(done, len(data.val))
    return results, shown
