"""Mask R-CNN on any backbone: torchvision's parts, changed to be mmdetection's and detectron2's detector.

Every difference between torchvision's defaults and the detector of the papers is a class or a line here; the numbers
are settings of `protocols/mask_rcnn.py`.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, Int64, UInt8
from timm.layers import LayerNorm2d
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.ops import MultiScaleRoIAlign, roi_align
from torchvision.ops.poolers import LevelMapper

from selfpatch.backbones.backbone import Backbone
from selfpatch.evaluation.feature_pyramid import Levels, build_pyramid, level_strides
from selfpatch.evaluation.features import NUM_LEVELS, is_hierarchical, scale_out_indices
from selfpatch.evaluation.protocols.mask_rcnn import MaskRCNN

BOX_POOLED, MASK_POOLED = 7, 14  # sides of a region's features for the box and the mask head
FINEST_LEVEL, CANONICAL_LEVEL, CANONICAL_PX = 2, 4, 224  # Feature Pyramid Networks, eq. 1

Size = tuple[int, int]  # (rows, columns)


class Targets(NamedTuple):
    """Ground truth of one image. Labels are 0 to C - 1."""

    boxes: Float32[Tensor, "P 4"]
    labels: Int64[Tensor, "P"]
    masks: UInt8[Tensor, "P H W"]


class Detections(NamedTuple):
    """Detections on one image, best first."""

    boxes: Float32[Tensor, "N 4"]
    scores: Float32[Tensor, "N"]
    labels: Int64[Tensor, "N"]
    masks: Float32[Tensor, "N r r"]  # probability on a grid over the box


class Detector(nn.Module):
    """Images to losses, or to detections.

    Labels of torchvision's parts are one higher than ours, as 0 is background to them.

    Args:
        backbone: is trained; hand in a copy where others use it.
    """

    def __init__(self, backbone: Backbone, num_classes: int, protocol: MaskRCNN):
        super().__init__()
        self.backbone = backbone
        self.out_indices = detector_out_indices(backbone, protocol)
        self.strides = level_strides(backbone, self.out_indices)
        self.pyramid = build_pyramid(protocol.neck, backbone, self.out_indices, protocol.fpn_channels)
        self.rpn = build_rpn(protocol, self.strides)
        self.roi_heads = build_roi_heads(protocol, self.strides[:NUM_LEVELS], num_classes)

    @property
    def size_divisor(self) -> int:
        """Sides of images are padded to multiples of the coarsest map but one, 32 px unless patches are of 14 px."""
        return math.lcm(int(self.strides[NUM_LEVELS - 1]), self.backbone.patch_size[0])

    def features(self, images: Float[Tensor, "B 3 H W"]) -> Levels:
        return self.pyramid(self.backbone.forward_intermediates(images, self.out_indices))

    def losses(
        self, images: Float[Tensor, "B 3 H W"], sizes: Sequence[Size], targets: Sequence[Targets]
    ) -> dict[str, Float[Tensor, ""]]:
        """Sizes are those of the images without their padding."""
        shifted = [{"boxes": t.boxes, "labels": t.labels + 1, "masks": t.masks} for t in targets]
        features = self.features(images)
        proposals, losses = self.rpn(ImageList(images, list(sizes)), features, shifted)
        terms = {"objectness": losses["loss_objectness"], "rpn_box": losses["loss_rpn_box_reg"]}
        return terms | self.roi_heads.losses(features, proposals, list(sizes), shifted)

    @torch.no_grad()
    def detect(self, images: Float[Tensor, "B 3 H W"], sizes: Sequence[Size]) -> list[Detections]:
        features = self.features(images)
        proposals, _ = self.rpn(ImageList(images, list(sizes)), features)
        return self.roi_heads.detect(features, proposals, list(sizes))


def detector_out_indices(backbone: Backbone, protocol: MaskRCNN) -> list[int]:
    stages = scale_out_indices(backbone, protocol.out_indices)
    reads_last_alone = protocol.neck == "simple" and not is_hierarchical(backbone)
    return stages[-1:] if reads_last_alone else stages


class Anchors(AnchorGenerator):
    """torchvision's, for strides that are no whole numbers, without rounding, and in float32 under autocast."""

    def __init__(self, sizes: Sequence[int], strides: Sequence[float]):
        self.strides = list(strides)
        super().__init__(sizes=tuple((size,) for size in sizes), aspect_ratios=((0.5, 1.0, 2.0),) * len(sizes))

    def generate_anchors(
        self, scales: Any, aspect_ratios: Any, dtype: torch.dtype = torch.float32, device: Any = "cpu"
    ) -> Float32[Tensor, "A 4"]:
        height_ratios = torch.as_tensor(aspect_ratios, dtype=dtype, device=device).sqrt()
        scales = torch.as_tensor(scales, dtype=dtype, device=device)
        widths, heights = (scales / height_ratios[:, None]).flatten(), (scales * height_ratios[:, None]).flatten()
        return torch.stack([-widths, -heights, widths, heights], dim=1) / 2

    def forward(self, image_list: ImageList, feature_maps: list[Tensor]) -> list[Tensor]:
        device = feature_maps[0].device
        self.set_cell_anchors(torch.float32, device)
        anchors = []
        for feature_map, stride, cell in zip(feature_maps, self.strides, self.cell_anchors, strict=True):
            rows, columns = (stride * torch.arange(side, device=device) for side in feature_map.shape[-2:])
            y, x = torch.meshgrid(rows, columns, indexing="ij")
            shifts = torch.stack([x, y, x, y], dim=-1).reshape(-1, 1, 4)
            anchors.append((shifts + cell).reshape(-1, 4))
        return [torch.cat(anchors)] * len(image_list.image_sizes)


class AlignedRoIAlign(MultiScaleRoIAlign):
    """RoIAlign without the shift by half a pixel, at as many points as a region has pixels of its level.

    torchvision's own takes two points a cell at any size (unless sampling_ratio is 0), and cannot be asked to align.

    Args:
        strides: of the levels that regions are pooled from.
    """

    def __init__(self, strides: Sequence[float], output_size: int):
        super().__init__([str(level) for level in range(len(strides))], output_size, sampling_ratio=0)
        self.scales = [1 / stride for stride in strides]
        self.map_levels = LevelMapper(FINEST_LEVEL, FINEST_LEVEL + len(strides) - 1, CANONICAL_PX, CANONICAL_LEVEL)

    def forward(self, x: dict[str, Tensor], boxes: list[Tensor], image_shapes: list[Size]) -> Float[Tensor, "P D r r"]:
        levels = self.map_levels(boxes)
        image = torch.cat([torch.full_like(of_image[:, :1], i) for i, of_image in enumerate(boxes)])
        regions = torch.cat([image, torch.cat(boxes)], dim=1)
        maps = [x[name] for name in self.featmap_names]
        pooled = maps[0].new_zeros(len(regions), maps[0].shape[1], *self.output_size)
        for level, (feature_map, scale) in enumerate(zip(maps, self.scales, strict=True)):
            (here,) = (levels == level).nonzero(as_tuple=True)
            # Both in float32, as boxes in bfloat16 are up to four pixels off.
            chosen, feature_map = regions[here].float(), feature_map.float()
            of_level = roi_align(feature_map, chosen, self.output_size, scale, sampling_ratio=0, aligned=True)
            pooled = pooled.index_copy(0, here, of_level.to(pooled.dtype))
        return pooled


class Float32Layer(nn.Module):
    """A last layer outside of autocast: boxes and scores are not rounded to 8 bits."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Any:
        with torch.autocast(x.device.type, enabled=False):
            return self.layer(x.float())


class L1ProposalNetwork(RegionProposalNetwork):
    """With the L1 loss of boxes, where torchvision's is smooth below 1/9."""

    def compute_loss(
        self,
        objectness: Tensor,
        pred_bbox_deltas: Tensor,
        labels: Sequence[Tensor],
        regression_targets: Sequence[Tensor],
    ) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        is_positive, is_negative = (torch.cat(sampled).bool() for sampled in self.fg_bg_sampler(labels))
        is_sampled = is_positive | is_negative
        wanted, targets = torch.cat(labels), torch.cat(regression_targets)
        objectness_loss = F.binary_cross_entropy_with_logits(objectness.flatten()[is_sampled], wanted[is_sampled])
        distance = (pred_bbox_deltas[is_positive] - targets[is_positive]).abs().sum()
        return objectness_loss, distance / is_sampled.sum()


class L1MaskHeads(RoIHeads):
    """With the L1 loss of boxes, and targets of masks that are 0 or 1; torchvision's are smooth and soft."""

    # torchvision's may have no part for masks; this one always has.
    mask_roi_pool: Any
    mask_head: Any
    mask_predictor: Any

    def losses(
        self, features: Levels, proposals: list[Tensor], sizes: list[Size], targets: list[dict[str, Tensor]]
    ) -> dict[str, Float[Tensor, ""]]:
        # 1. Regions to learn from, and what each should become.
        proposals, matched, labels, box_targets = self.select_training_samples(proposals, targets)

        # 2. Classes and boxes.
        scores, boxes = self.box_predictor(self.box_head(self.box_roi_pool(features, proposals, sizes)))
        terms = box_losses(scores, boxes, torch.cat(labels), torch.cat(box_targets))

        # 3. Masks, of the regions with an object alone.
        is_object = [of_image > 0 for of_image in labels]
        regions = [of_image[chosen] for of_image, chosen in zip(proposals, is_object, strict=True)]
        logits = self.mask_predictor(self.mask_head(self.mask_roi_pool(features, regions, sizes)))
        mask_targets = torch.cat(
            [
                crop_masks(target["masks"], indices[chosen], boxes_of_image, side=logits.shape[-1])
                for target, indices, chosen, boxes_of_image in zip(targets, matched, is_object, regions, strict=True)
            ]
        )
        object_labels = torch.cat([of_image[chosen] for of_image, chosen in zip(labels, is_object, strict=True)])
        return terms | {"mask": mask_loss(logits, object_labels, mask_targets)}

    def detect(self, features: Levels, proposals: list[Tensor], sizes: list[Size]) -> list[Detections]:
        scores, boxes = self.box_predictor(self.box_head(self.box_roi_pool(features, proposals, sizes)))
        found = self.postprocess_detections(scores, boxes, proposals, sizes)
        found_boxes, _, found_labels = found
        logits = self.mask_predictor(self.mask_head(self.mask_roi_pool(features, found_boxes, sizes)))
        labels = torch.cat(found_labels)
        masks = logits[torch.arange(len(labels), device=labels.device), labels].sigmoid()
        by_image = masks.split([len(of_image) for of_image in found_labels])
        return [
            Detections(boxes, scores, labels - 1, masks)
            for boxes, scores, labels, masks in zip(*found, by_image, strict=True)
        ]


def box_losses(
    scores: Float32[Tensor, "N C"],
    boxes: Float32[Tensor, "N C4"],
    labels: Int64[Tensor, "N"],
    targets: Float32[Tensor, "N 4"],
) -> dict[str, Float[Tensor, ""]]:
    """Cross-entropy, and L1 of the boxes of objects by their own class, over the number of all regions."""
    (objects,) = (labels > 0).nonzero(as_tuple=True)
    own = boxes.unflatten(1, (-1, 4))[objects, labels[objects]]
    return {"class": F.cross_entropy(scores, labels), "box": (own - targets[objects]).abs().sum() / len(labels)}


def crop_masks(
    masks: UInt8[Tensor, "P H W"], indices: Int64[Tensor, "N"], boxes: Float32[Tensor, "N 4"], *, side: int
) -> Float32[Tensor, "N side side"]:
    """The part of mask indices[i] in boxes[i], on a grid: 1 where at least half of a cell is covered, else 0."""
    if len(indices) == 0:
        return masks.new_zeros(0, side, side, dtype=torch.float32)
    regions = torch.cat([indices[:, None].float(), boxes.float()], dim=1)
    cover = roi_align(masks[:, None].float(), regions, (side, side), 1.0, sampling_ratio=0, aligned=True)
    return (cover[:, 0] >= 0.5).float()


def mask_loss(
    logits: Float32[Tensor, "N C r r"], labels: Int64[Tensor, "N"], targets: Float32[Tensor, "N r r"]
) -> Float[Tensor, ""]:
    """Binary cross-entropy of the masks of their own classes, a mean over all cells; 0 of no region at all."""
    if len(labels) == 0:
        return logits.sum() * 0
    own = logits[torch.arange(len(labels), device=labels.device), labels]
    return F.binary_cross_entropy_with_logits(own, targets)


def build_rpn(protocol: MaskRCNN, strides: Sequence[float]) -> L1ProposalNetwork:
    anchors = Anchors(protocol.anchor_sizes, strides)
    depth = 2 if protocol.head_norm == "layer_norm" else 1
    head = RPNHead(protocol.fpn_channels, anchors.num_anchors_per_location()[0], conv_depth=depth)
    head.cls_logits, head.bbox_pred = Float32Layer(head.cls_logits), Float32Layer(head.bbox_pred)
    return L1ProposalNetwork(
        anchors,
        head,
        fg_iou_thresh=0.7,
        bg_iou_thresh=0.3,
        batch_size_per_image=protocol.rpn_batch_size_per_image,
        positive_fraction=0.5,
        pre_nms_top_n={"training": protocol.rpn_pre_nms_top_n_train, "testing": protocol.rpn_pre_nms_top_n_test},
        post_nms_top_n={"training": protocol.rpn_post_nms_top_n_train, "testing": protocol.rpn_post_nms_top_n_test},
        nms_thresh=protocol.rpn_nms,
    )


def build_roi_heads(protocol: MaskRCNN, strides: Sequence[float], num_classes: int) -> L1MaskHeads:
    channels, width = protocol.fpn_channels, protocol.box_head_dim
    if protocol.head_norm == "layer_norm":
        box_head = FastRCNNConvFCHead((channels, BOX_POOLED, BOX_POOLED), [channels] * 4, [width], LayerNorm2d)
    else:
        box_head = TwoMLPHead(channels * BOX_POOLED**2, width)
    box_predictor = FastRCNNPredictor(width, num_classes + 1)
    init_box_head(box_head, box_predictor)
    norm = LayerNorm2d if protocol.head_norm == "layer_norm" else None
    return L1MaskHeads(
        AlignedRoIAlign(strides, BOX_POOLED),
        box_head,
        Float32Layer(box_predictor),
        # Objects without a region of this IoU get none: torchvision could only give them one of any IoU.
        fg_iou_thresh=0.5,
        bg_iou_thresh=0.5,
        batch_size_per_image=protocol.box_batch_size_per_image,
        positive_fraction=0.25,
        bbox_reg_weights=None,
        score_thresh=protocol.score_threshold,
        nms_thresh=protocol.nms,
        detections_per_img=protocol.max_boxes,
        mask_roi_pool=AlignedRoIAlign(strides, MASK_POOLED),
        mask_head=MaskRCNNHeads(channels, [channels] * 4, 1, norm),
        mask_predictor=Float32Layer(MaskRCNNPredictor(channels, channels, num_classes + 1)),
    )


def init_box_head(head: nn.Module, predictor: FastRCNNPredictor) -> None:
    """As mmdetection and detectron2: boxes start out where their proposals are. torchvision leaves torch's defaults."""
    for layer in head.modules():
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
    for layer, std in ((predictor.cls_score, 0.01), (predictor.bbox_pred, 0.001)):
        nn.init.normal_(layer.weight, std=std)
        nn.init.zeros_(layer.bias)
