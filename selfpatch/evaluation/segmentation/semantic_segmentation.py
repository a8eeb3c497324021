"""Semantic FPN and UPerNet: the whole backbone is trained with a decoder, which is how papers compare backbones."""

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Real, UInt8
from torch import Tensor, nn

from selfpatch.backbones.backbone import Backbone
from selfpatch.data.loading.sampler import sample_rng
from selfpatch.evaluation.class_bars import write_class_bars
from selfpatch.evaluation.datasets.segmentation import SegmentationData, read_segmentation
from selfpatch.evaluation.feature_cache import unwrap_cache
from selfpatch.evaluation.features import (
    ReadCache,
    floor_to_patch_multiple,
    is_hierarchical,
    scale_out_indices,
)
from selfpatch.evaluation.head_training import resume_key, seeded, train_head
from selfpatch.evaluation.metrics import pixel_loss
from selfpatch.evaluation.protocols.decoder_training import DecoderTraining
from selfpatch.evaluation.protocols.semantic_fpn import SemanticFPN
from selfpatch.evaluation.protocols.upernet import UPerNet
from selfpatch.evaluation.segmentation.prediction_pictures import write_prediction_sheets
from selfpatch.evaluation.segmentation.segmentation_heads import (
    FCNHead,
    FPNNeck,
    MultiLevelNeck,
    SemanticFPNHead,
    UPerHead,
)
from selfpatch.evaluation.segmentation.segmentation_scores import evaluate_images
from selfpatch.evaluation.segmentation.sliding_window import sliding_window
from selfpatch.evaluation.segmentation.training_crops import collate, photometric_distortion, random_crop
from selfpatch.evaluation.task import EvalContext, EvalOutput, TrainedHead
from selfpatch.optim.schedules import warmup_poly

# Parts of the names of parameters without weight decay. mmsegmentation's configurations add "norm", which its vision
# transformer (ln1, ln2) and its decoders (bn) have in no name: their norms decay, and those of its Swin do not.
NO_DECAY = ("pos_embed", "cls_token", "reg_token", "relative_position_bias_table")


class Segmenter(nn.Module):
    """A backbone and a decoder: images to class scores on the decoder's own grid.

    Args:
        backbone: is trained; hand in a copy where others use it.
        out_indices: stages of the backbone whose maps the neck reads.
        auxiliary: a head for a second loss, and the level that it sees.
    """

    def __init__(
        self,
        backbone: Backbone,
        out_indices: Sequence[int],
        neck: nn.Module,
        head: nn.Module,
        auxiliary: tuple[nn.Module, int] | None = None,
    ):
        super().__init__()
        self.backbone = backbone
        self.out_indices = list(out_indices)
        self.neck, self.head = neck, head
        self.auxiliary, self.auxiliary_level = auxiliary or (None, 0)
        freeze_unused(self.backbone, self.out_indices)

    def forward(self, images: Float[Tensor, "B _c H W"]) -> tuple[Float[Tensor, "B C r s"], Tensor | None]:
        """Class scores of the head and, if there is one, of the auxiliary head."""
        levels = self.neck(self.backbone.forward_intermediates(images, self.out_indices))
        return self.head(levels), None if self.auxiliary is None else self.auxiliary(levels[self.auxiliary_level])

    def predict(self, images: Float[Tensor, "B _c H W"]) -> Float[Tensor, "B C H W"]:
        """Class scores of every pixel of images of any size.

        What is lacking to a whole number of patches is added on the right and below in the mean colour, and the scores
        of that grid are stretched over the image as it was. This is what mmsegmentation's vision transformers do, so
        that patches of 16 px and windows of any size give its numbers. (A Swin is padded to whole places of its last
        stage here, to whole patches and windows there.)
        """
        height, width = images.shape[2:]
        rows, columns = self.backbone.patch_size
        logits, _ = self(F.pad(images, (0, -width % columns, 0, -height % rows)))
        return F.interpolate(logits.float(), size=(height, width), mode="bilinear")


def semantic_fpn(backbone: Backbone, num_classes: int, protocol: SemanticFPN) -> Segmenter:
    """Maps of a plain transformer go into the pyramid as they are, all of one stride, as the paper has it."""
    out_indices = scale_out_indices(backbone, protocol.out_indices)
    widths = [backbone.stages[stage].embed_dim for stage in out_indices]
    return Segmenter(
        backbone,
        out_indices,
        FPNNeck(widths, protocol.fpn_channels),
        SemanticFPNHead(protocol.fpn_channels, protocol.head_channels, num_classes, dropout=protocol.dropout),
    )


def upernet(backbone: Backbone, num_classes: int, protocol: UPerNet) -> Segmenter:
    out_indices = scale_out_indices(backbone, protocol.out_indices)
    widths = [backbone.stages[stage].embed_dim for stage in out_indices]
    neck = (
        nn.Identity() if is_hierarchical(backbone) else MultiLevelNeck(widths, backbone.embed_dim, protocol.neck_scales)
    )
    head = UPerHead(
        widths, protocol.head_channels, num_classes, pool_scales=protocol.pool_scales, dropout=protocol.dropout
    )
    auxiliary = None
    if protocol.auxiliary_weight:
        level = protocol.auxiliary_level
        fcn = FCNHead(widths[level], protocol.auxiliary_channels, num_classes, dropout=protocol.dropout)
        auxiliary = (fcn, level)
    return Segmenter(backbone, out_indices, neck, head, auxiliary)


def run_semantic_fpn(backbone: Backbone, root: Path, protocol: SemanticFPN, context: EvalContext) -> EvalOutput:
    return run("semantic-fpn", semantic_fpn, backbone, root, protocol, context)


def run_upernet(backbone: Backbone, root: Path, protocol: UPerNet, context: EvalContext) -> EvalOutput:
    return run("upernet", upernet, backbone, root, protocol, context)


def run(
    task: str,
    build: Callable[[Backbone, int, Any], Segmenter],
    backbone: Backbone,
    root: Path,
    protocol: Any,
    context: EvalContext,
) -> EvalOutput:
    """Train a copy of the backbone with the decoder, or go on from context.out; score the validation images.

    Source: alinlab/SelfPatch segmentation/; open-mmlab/mmsegmentation.
    Differs: see `DecoderTraining.differs`.
    """
    data = read_segmentation(root, max_images=protocol.max_images, report=context.report, pixels=backbone.pixels)
    own = copy.deepcopy(unwrap_cache(backbone))
    own.set_image_size(floor_to_patch_multiple(protocol.image_size, own.patch_size))
    with seeded(protocol.seed, context.device):
        segmenter = build(own, data.num_classes, protocol).to(context.device)
    segmenter.backbone.set_drop_path(protocol.drop_path)
    segmenter.backbone.set_activation_checkpointing("full" if protocol.recompute else "none")
    identity = resume_key(task, protocol, data.training_fingerprint(), backbone)
    for later in ("recompute", "inference", "stride"):  # they do not change the weights
        del identity["protocol"][later]
    train(segmenter, data, protocol, context, identity=identity)
    if context.keep_head is not None:
        context.keep_head(TrainedHead(task, segmenter, segmenter.backbone, protocol, list(data.class_names)))
    scores = score(segmenter, data, protocol, context)
    write_prediction_sheets(scores.predictions, data, context.pictures)
    write_class_bars(scores.metrics, context.pictures)
    details = {"out_indices": segmenter.out_indices, "num_parameters": sum(p.numel() for p in segmenter.parameters())}
    return EvalOutput(scores.metrics, data.describe(), details)


def train(
    segmenter: Segmenter,
    data: SegmentationData,
    protocol: SemanticFPN | UPerNet,
    context: EvalContext,
    *,
    identity: dict[str, Any],
) -> None:
    """Train in place; resumes from context.out if it holds the same training."""
    backbone = segmenter.backbone
    read = ReadCache(lambda item: (data.read_image(item), data.read_mask(item)))
    size = floor_to_patch_multiple(protocol.image_size, backbone.patch_size)

    def sample(epoch: int, index: int) -> tuple[Real[np.ndarray, "h w _c"], UInt8[np.ndarray, "h w"]]:
        rng = sample_rng(protocol.seed, epoch, index)
        image, mask = read(data.train[index])
        image, mask = random_crop(image, mask, rng, protocol, size=size)
        return (photometric_distortion(image, rng) if protocol.photometric_distortion else image), mask

    def losses(samples: list[Any]) -> dict[str, Tensor]:
        images, masks = collate(samples, size, backbone.mean, backbone.std, device=context.device)
        logits, auxiliary = segmenter(images)
        terms = {"decoder": pixel_loss(logits, masks)}
        if auxiliary is not None:
            assert isinstance(protocol, UPerNet)
            terms["auxiliary"] = protocol.auxiliary_weight * pixel_loss(auxiliary, masks)
        return terms

    train_head(
        segmenter,
        torch.optim.AdamW(parameter_groups(segmenter, protocol.weight_decay)),
        losses,
        sample,
        num_samples=len(data.train),
        batch_size=protocol.batch_size,
        steps=protocol.steps,
        lr=warmup_poly(
            protocol.lr, protocol.steps, protocol.warmup_steps, start=protocol.warmup_start, power=protocol.power
        ),
        clip_norm=protocol.clip_norm,
        seed=protocol.seed,
        identity=identity,
        context=context,
        precision=protocol.precision,
    )


def score(segmenter: Segmenter, data: SegmentationData, protocol: DecoderTraining, context: EvalContext) -> Any:
    return evaluate_images(
        data, segmenter.backbone, protocol, lambda image: decoder_logits(segmenter, protocol, image), context
    )


def decoder_logits(
    segmenter: Segmenter, protocol: DecoderTraining, image: Float[Tensor, "_c H W"]
) -> Float[Tensor, "C H W"]:
    """Class scores of a normalized image, whole or by windows."""
    if protocol.inference == "whole":
        return segmenter.predict(image[None])[0]
    window = floor_to_patch_multiple(protocol.image_size, segmenter.backbone.patch_size)
    return sliding_window(
        image, segmenter.predict, window=window, stride=protocol.stride, batch_size=protocol.batch_size
    )


def freeze_unused(backbone: Backbone, out_indices: Sequence[int]) -> None:
    """Train all parameters but those that these maps do not depend on, such as the final norm's."""
    parameters = list(backbone.requires_grad_(True).parameters())
    image = torch.zeros(1, backbone.num_channels, *backbone.patch_size, device=parameters[0].device)
    total = torch.stack([stage.sum() for stage in backbone.forward_intermediates(image, out_indices)]).sum()
    for parameter, gradient in zip(parameters, torch.autograd.grad(total, parameters, allow_unused=True), strict=True):
        parameter.requires_grad_(gradient is not None)


def parameter_groups(segmenter: Segmenter, weight_decay: float) -> list[dict[str, Any]]:
    without_decay = (*NO_DECAY, "norm") if is_hierarchical(segmenter.backbone) else NO_DECAY
    decay, no_decay = [], []
    for name, parameter in segmenter.named_parameters():
        if parameter.requires_grad:
            (no_decay if any(part in name for part in without_decay) else decay).append(parameter)
    return [{"params": decay, "weight_decay": weight_decay}, {"params": no_decay, "weight_decay": 0.0}]
