import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import roi_align

from selfpatch.evaluation.detection.detector import (
    AlignedRoIAlign,
    Anchors,
    Detector,
    Float32Layer,
    L1ProposalNetwork,
    Targets,
    box_losses,
    crop_masks,
    mask_loss,
)
from selfpatch.evaluation.protocols.mask_rcnn import MaskRCNN
from tests.backbones.small_swin import small_pyramid
from tests.backbones.small_vits import small_vit
from tests.reference.plain_detection import mask_target

SMALL = {
    "fpn_channels": 8,
    "box_head_dim": 16,
    "anchor_sizes": (8, 16, 32, 64, 128),
    "rpn_pre_nms_top_n_train": 60,
    "rpn_pre_nms_top_n_test": 60,
    "rpn_post_nms_top_n_train": 30,
    "rpn_post_nms_top_n_test": 30,
    "box_batch_size_per_image": 16,
}


def random_boxes(count: int, *, side: float = 120.0, largest: float = 1000.0) -> torch.Tensor:
    start = torch.rand(count, 2) * side
    return torch.cat([start, start + 2 + torch.rand(count, 2) ** 3 * largest], dim=1)


def two_targets() -> list[Targets]:
    masks = torch.zeros(2, 64, 96, dtype=torch.uint8)
    masks[0, 8:40, 10:50] = 1
    masks[1, 30:60, 60:90] = 1
    boxes = torch.tensor([[10.0, 8, 50, 40], [60, 30, 90, 60]])
    nothing = Targets(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), torch.zeros(0, 64, 80, dtype=torch.uint8))
    return [Targets(boxes, torch.tensor([0, 2]), masks), nothing]


def test_regions_are_pooled_as_roi_align_does_it_plainly():
    """Adaptive sampling, aligned, and from the level that the size of a region asks for."""
    torch.manual_seed(0)
    strides = [3.5, 7, 14, 28]
    maps = {str(i): torch.randn(2, 5, int(140 / s), int(140 / s)) for i, s in enumerate(strides)}
    boxes = [random_boxes(30), random_boxes(20)]
    pooled = AlignedRoIAlign(strides, 7)(maps, boxes, [(140, 140)] * 2)
    assert pooled.shape == (50, 5, 7, 7)
    used = set()
    for i, (image, box) in enumerate([(0, box) for box in boxes[0]] + [(1, box) for box in boxes[1]]):
        side = ((box[2] - box[0]) * (box[3] - box[1])).sqrt().item()
        level = int(min(max(np.floor(4 + np.log2(side / 224)), 2), 5)) - 2
        used.add(level)
        region = torch.cat([torch.tensor([float(image)]), box])[None]
        expected = roi_align(maps[str(level)], region, 7, 1 / strides[level], sampling_ratio=0, aligned=True)
        assert torch.equal(pooled[i], expected[0])
    assert len(used) == 4


def test_boxes_of_regions_are_not_rounded_to_half_precision():
    """In bfloat16 all of these would be one box."""
    torch.manual_seed(0)
    maps = {str(i): torch.randn(1, 3, int(1024 / s), int(1024 / s)).bfloat16() for i, s in enumerate((4, 8, 16, 32))}
    boxes = torch.tensor([[801.0, 801, 881, 881], [802, 802, 882, 882]])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        pooled = AlignedRoIAlign([4, 8, 16, 32], 7)(maps, [boxes], [(1024, 1024)])
    full = AlignedRoIAlign([4, 8, 16, 32], 7)({name: m.float() for name, m in maps.items()}, [boxes], [(1024, 1024)])
    assert pooled.dtype == torch.bfloat16 and torch.equal(pooled, full.bfloat16())
    assert not torch.equal(pooled[0], pooled[1])


def test_no_region_at_all():
    maps = {str(i): torch.randn(1, 5, 8, 8) for i in range(4)}
    assert AlignedRoIAlign([4, 8, 16, 32], 7)(maps, [torch.zeros(0, 4)], [(32, 32)]).shape == (0, 5, 7, 7)


def test_anchors_are_torchvisions_where_strides_are_whole_and_not_rounded():
    maps = [torch.zeros(2, 3, 16, 24), torch.zeros(2, 3, 8, 12)]
    images = ImageList(torch.zeros(2, 3, 64, 96), [(64, 96), (60, 90)])
    ours = Anchors((32, 64), (4.0, 8.0))(images, maps)
    theirs = AnchorGenerator(((32,), (64,)), ((0.5, 1.0, 2.0),) * 2)(images, maps)
    assert len(ours) == 2 and torch.equal(ours[0], ours[1])
    assert (ours[0] - theirs[0]).abs().max() <= 0.5
    # 32 * 32 pixels at every aspect; 1:2 is no whole number wide.
    first = ours[0][:3]
    width, height = first[:, 2] - first[:, 0], first[:, 3] - first[:, 1]
    assert torch.allclose(width * height, torch.tensor(1024.0)) and torch.allclose(
        height / width, torch.tensor([0.5, 1, 2])
    )


def test_anchors_of_other_strides_and_of_half_precision():
    maps = [torch.zeros(1, 3, 4, 4, dtype=torch.bfloat16)]
    (anchors,) = Anchors((8,), (3.5,))(ImageList(torch.zeros(1, 3, 14, 14), [(14, 14)]), maps)
    middles = (anchors[:, :2] + anchors[:, 2:]).reshape(4, 4, 3, 2)[:, :, 0] / 2
    assert middles[1, 2].tolist() == pytest.approx([7, 3.5]) and anchors.dtype == torch.float32


def test_box_losses():
    torch.manual_seed(0)
    scores, boxes, targets = torch.randn(6, 4), torch.randn(6, 16), torch.randn(6, 4)
    labels = torch.tensor([0, 3, 1, 0, 2, 0])
    terms = box_losses(scores, boxes, labels, targets)
    expected = (
        sum((boxes[i, 4 * labels[i] + k] - targets[i, k]).abs() for i in range(6) if labels[i] for k in range(4)) / 6
    )
    assert terms["box"].item() == pytest.approx(expected.item(), rel=1e-5)
    log_probs = torch.stack([scores[i, labels[i]] - scores[i].exp().sum().log() for i in range(6)])
    assert terms["class"].item() == pytest.approx(-log_probs.mean().item(), rel=1e-5)
    nothing = box_losses(scores, boxes, torch.zeros(6, dtype=torch.int64), targets)
    assert nothing["box"].item() == 0


def test_proposal_losses_are_l1_over_all_sampled_anchors():
    torch.manual_seed(0)
    rpn = L1ProposalNetwork(
        Anchors((8,), (4.0,)), torch.nn.Identity(), 0.7, 0.3, 8, 0.5, {"training": 9}, {"training": 9}, 0.7
    )
    labels = [torch.tensor([1.0, 0, -1, 0, 1]), torch.tensor([0.0, 1, -1])]  # -1 is not learned from; few are sampled
    objectness, deltas, targets = torch.randn(8, 1), torch.randn(8, 4), torch.randn(8, 4)
    objectness_loss, box_loss = rpn.compute_loss(objectness, deltas, labels, [targets[:5], targets[5:]])
    wanted, sampled = torch.cat(labels), torch.cat(labels) >= 0
    expected = (deltas - targets).abs()[wanted == 1].sum() / sampled.sum()
    assert box_loss.item() == pytest.approx(expected.item(), rel=1e-5)
    probability = objectness[:, 0].sigmoid()
    each = -torch.where(wanted == 1, probability.log(), (1 - probability).log())[sampled]
    assert objectness_loss.item() == pytest.approx(each.mean().item(), rel=1e-5)


def test_mask_targets_are_a_plain_half_covered_or_not():
    rng = np.random.default_rng(0)
    masks = np.zeros((3, 24, 30), np.uint8)
    for mask in masks:
        top, left = rng.integers(0, 10, 2)
        mask[top : top + 12, left : left + 15] = 1
        mask[rng.integers(24), :] = 0
    boxes = np.array([[2.3, 1.2, 20.7, 19.9], [5, 3, 25, 17], [-0.5, 0, 9.5, 24], [8, 8, 12.4, 11.1]], np.float32)
    indices = torch.tensor([0, 1, 2, 0])
    targets = crop_masks(torch.from_numpy(masks), indices, torch.from_numpy(boxes), side=7)
    assert set(targets.unique().tolist()) == {0, 1}
    for target, index, box in zip(targets, indices, boxes.tolist(), strict=True):
        assert np.array_equal(target.numpy(), mask_target(masks[index].astype(float), box, 7))
    assert crop_masks(torch.zeros(0, 24, 30, dtype=torch.uint8), indices[:0], torch.zeros(0, 4), side=7).shape == (
        0,
        7,
        7,
    )


def test_mask_loss_is_of_the_own_class_alone():
    torch.manual_seed(0)
    logits = torch.randn(3, 4, 5, 5, requires_grad=True)
    labels, targets = torch.tensor([2, 1, 3]), torch.randint(0, 2, (3, 5, 5)).float()
    loss = mask_loss(logits, labels, targets)
    probability = torch.stack([logits[i, labels[i]].sigmoid() for i in range(3)])
    expected = -(targets * probability.log() + (1 - targets) * (1 - probability).log()).mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    loss.backward()
    assert all((logits.grad[i, c].abs().sum() > 0) == (c == labels[i]) for i in range(3) for c in range(4))
    assert mask_loss(logits[:0], labels[:0], targets[:0]).item() == 0


def backbones():
    return {
        "class token": small_vit("class token"),  # patches of 8 px
        "no final norm": small_vit("no final norm"),
        "registers": small_vit("registers"),  # patches of 14 px
        "RoPE": small_vit("RoPE"),
        "Swin": small_pyramid(),
    }


@pytest.mark.parametrize("neck", ["xcit", "simple"])
@pytest.mark.parametrize("name", ["class token", "no final norm", "registers", "RoPE", "Swin"])
def test_losses_and_detections_of_every_family(name, neck):
    """At a size that is not square, with one image that has nothing on it; every parameter has a gradient."""
    torch.manual_seed(0)
    backbone = backbones()[name]
    backbone.remove_final_norm()
    head_norm = "layer_norm" if neck == "simple" else "none"
    detector = Detector(backbone, 3, MaskRCNN(neck=neck, head_norm=head_norm, **SMALL)).train()
    multiple = detector.size_divisor
    assert multiple % backbone.patch_size[0] == 0 and multiple == (28 if name == "registers" else 32)
    rows, columns = -(-64 // multiple) * multiple, -(-96 // multiple) * multiple
    images = torch.randn(2, 3, rows, columns)
    sizes = [(64, 96), (64, 80)]
    losses = detector.losses(images, sizes, two_targets())
    assert list(losses) == ["objectness", "rpn_box", "class", "box", "mask"]
    assert all(loss.isfinite() and loss > 0 for loss in losses.values())
    sum(losses.values()).backward()
    without = [n for n, p in detector.named_parameters() if p.grad is None]
    assert without == []

    detector.eval()
    detector.roi_heads.score_thresh = 0.0
    found = detector.detect(images, sizes)
    assert len(found) == 2
    for detections, (height, width) in zip(found, sizes, strict=True):
        count = len(detections.scores)
        assert detections.boxes.shape == (count, 4) and detections.masks.shape == (count, 28, 28) and count > 0
        assert (detections.boxes >= 0).all() and (detections.boxes <= torch.tensor([width, height] * 2)).all()
        assert detections.labels.min() >= 0 and detections.labels.max() <= 2
        assert (detections.scores.diff() <= 0).all() and (detections.masks >= 0).all() and (detections.masks <= 1).all()


def test_images_that_show_nothing_at_all_train():
    torch.manual_seed(0)
    detector = Detector(small_vit("class token"), 3, MaskRCNN(**SMALL)).train()
    losses = detector.losses(torch.randn(1, 3, 64, 96), [(64, 80)], two_targets()[1:])
    assert losses["rpn_box"] == losses["box"] == losses["mask"] == 0
    sum(losses.values()).backward()


class SaysAlways(torch.nn.Module):
    """Every region is of one class of torchvision's numbers, where 0 is background, and keeps its box."""

    def __init__(self, torchvision_label: int):
        super().__init__()
        self.label = torchvision_label

    def forward(self, x):
        scores = torch.zeros(len(x), 4)
        scores[:, self.label] = 20
        return scores, torch.zeros(len(x), 16)


def test_labels_begin_at_0_outside_and_at_1_inside():
    torch.manual_seed(0)
    detector = Detector(small_vit("class token"), 3, MaskRCNN(**SMALL)).train()
    detector.roi_heads.box_predictor = SaysAlways(2)
    (of_one,) = two_targets()[:1]
    images = torch.randn(1, 3, 64, 96)
    losses = []
    for label in range(3):
        torch.manual_seed(0)
        targets = [of_one._replace(labels=torch.full((2,), label))]
        losses.append(detector.losses(images, [(64, 96)], targets)["class"].item())
    assert losses[1] < losses[0] == losses[2]
    (found,) = detector.eval().detect(images, [(64, 96)])
    assert set(found.labels.tolist()) == {1}


def test_last_layers_are_out_of_autocast():
    layer = torch.nn.Linear(64, 3)
    x = torch.randn(5, 64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = layer(x)
        full = Float32Layer(layer)(x.bfloat16())
    assert half.dtype == torch.bfloat16
    assert torch.equal(full, layer(x.bfloat16().float()))
    torch.manual_seed(0)
    detector = Detector(small_vit("class token"), 3, MaskRCNN(**SMALL)).train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = detector.losses(torch.randn(2, 3, 64, 96), [(64, 96), (64, 80)], two_targets())
    assert all(loss.dtype == torch.float32 and loss.isfinite() for loss in losses.values())


def test_boxes_start_where_their_proposals_are():
    predictor = Detector(small_vit("class token"), 3, MaskRCNN()).roi_heads.box_predictor.layer
    assert predictor.bbox_pred.weight.std().item() == pytest.approx(0.001, rel=0.1)
    assert predictor.cls_score.weight.std().item() == pytest.approx(0.01, rel=0.1)


def test_padding_is_not_detected_on():
    """Boxes end at the image, not at its padding."""
    torch.manual_seed(0)
    detector = Detector(small_vit("class token"), 3, MaskRCNN(score_threshold=0.0, **SMALL)).eval()
    (found,) = detector.detect(F.pad(torch.randn(1, 3, 40, 48), (0, 48, 0, 24)), [(40, 48)])
    assert found.boxes[:, 2].max() <= 48 and found.boxes[:, 3].max() <= 40
