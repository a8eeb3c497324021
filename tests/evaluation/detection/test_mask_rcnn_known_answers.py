"""Mask R-CNN through the whole task, with detections made by hand: every AP can be told beforehand.

Proposals, class scores and mask logits are given; what is tested is all that comes after them: decoding, scores, non-
maximum suppression, masks pasted into boxes, the way back to the pixels of the file, and COCO's average precision.
"""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from selfpatch.evaluation.detection import mask_rcnn
from selfpatch.evaluation.protocols.mask_rcnn import MaskRCNN
from selfpatch.evaluation.task import EvalContext
from tests.backbones.small_vits import small_vit
from tests.evaluation.detection.test_detector import SMALL

# 48 x 64 px become 96 x 128; one step of training, which nothing depends on.
PROTOCOL = MaskRCNN(
    **SMALL, image_size=96, long_side=128, epochs=1, batch_size=1, warmup_steps=0, decay_epochs=(), augmentation="none"
)
SCALE = 2
CAT, DOG = 0, 1
CATEGORY_IDS = [3, 7]
WHOLE = np.ones((28, 28), bool)
UPPER = np.arange(28)[:, None].repeat(28, axis=1) < 16  # 16 of 28 rows


class Found(NamedTuple):
    label: int
    score: float
    box: tuple[float, float, float, float]  # left, top, right, bottom in pixels of the file
    mask: np.ndarray = WHOLE  # within the box


CAT_1, CAT_2 = Found(CAT, 0.7, (4, 4, 32, 32)), Found(CAT, 0.8, (10, 10, 38, 38))
DOG_1 = Found(DOG, 0.6, (36, 8, 60, 40))
TRUTH = [[CAT_1, DOG_1], [CAT_2]]  # of two images


def write_data(root: Path) -> Path:
    for split, images in (("train2017", TRUTH[:1]), ("val2017", TRUTH)):
        (root / split).mkdir(parents=True)
        annotations = []
        for image_id, objects in enumerate(images):
            Image.fromarray(np.full((48, 64, 3), 90, np.uint8)).save(root / split / f"{image_id}.png")
            for thing in objects:
                left, top, right, bottom = thing.box
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": image_id,
                        "category_id": CATEGORY_IDS[thing.label],
                        "bbox": [left, top, right - left, bottom - top],
                        "area": (right - left) * (bottom - top),
                        "iscrowd": 0,
                        "segmentation": [[left, top, right, top, right, bottom, left, bottom]],
                    }
                )
        content = {
            "images": [{"id": i, "file_name": f"{i}.png", "width": 64, "height": 48} for i in range(len(images))],
            "annotations": annotations,
            "categories": [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}],
        }
        (root / "annotations").mkdir(exist_ok=True)
        (root / f"annotations/instances_{split}.json").write_text(json.dumps(content))
    return root


class Hand(nn.Module):
    """Region proposal network and heads at once: hands out what was found by hand, image after image."""

    def __init__(self, images: list[list[Found]]):
        super().__init__()
        self.waiting, self.found = list(images), []

    def propose(self, images, features):
        self.found = self.waiting.pop(0)
        return [SCALE * torch.tensor([f.box for f in self.found], dtype=torch.float32).reshape(-1, 4)], {}

    def predict_boxes(self, pooled):
        """Logits of background, cat and dog, whose softmax is the score; boxes are where the proposals are."""
        logits = torch.full((len(self.found), 3), -100.0)
        for row, found in zip(logits, self.found, strict=True):
            row[0], row[1 + found.label] = np.log(1 - found.score), np.log(found.score)
        return logits, torch.zeros(len(self.found), 3 * 4)

    def predict_masks(self, boxes):
        """Of each box that is left, in the channel of its class; another channel would give nothing."""
        logits = torch.full((len(boxes), 3, 28, 28), -10.0)
        for of_box, box in zip(logits, boxes, strict=True):
            (found,) = (f for f in self.found if np.allclose(np.multiply(f.box, SCALE), box))
            of_box[1 + found.label][torch.from_numpy(found.mask)] = 10.0
        return logits


class Call(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.forward = function


def metrics_of(found: list[list[Found]], tmp_path, monkeypatch) -> dict[str, float]:
    hand = Hand(found)
    build_detector = mask_rcnn.build_detector

    def built(*arguments):
        detector = build_detector(*arguments)
        heads = detector.roi_heads
        detector.losses = lambda *of_batch: {"none": 0 * sum(p.sum() for p in detector.parameters())}
        detector.rpn = Call(hand.propose)
        heads.box_roi_pool, heads.box_head = (Call(lambda x, *_: x) for _ in range(2))
        heads.box_predictor = Call(hand.predict_boxes)
        heads.mask_roi_pool = Call(lambda features, boxes, sizes: torch.cat(boxes))
        heads.mask_head, heads.mask_predictor = Call(lambda boxes: boxes), Call(hand.predict_masks)
        return detector

    monkeypatch.setattr(mask_rcnn, "build_detector", built)
    data = write_data(tmp_path / "data")
    return mask_rcnn.run(small_vit("class token"), data, PROTOCOL, EvalContext(tmp_path / "out")).metrics


# COCO takes the precision at 101 recalls, 0, 0.01, ..., 1: half of the objects reach 51 of them.
HALF = 51 / 101


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        pytest.param(
            TRUTH,
            {"box/AP": 1, "mask/AP": 1, "box/AP50": 1, "mask/AP75": 1, "box/AP/cat": 1, "mask/AP/dog": 1},
            id="all found",
        ),
        pytest.param(
            [[CAT_1, DOG_1], []],
            {"box/AP/cat": HALF, "mask/AP/cat": HALF, "box/AP/dog": 1, "box/AP": (HALF + 1) / 2},
            id="one of two cats missed",
        ),
        pytest.param([[], []], {"box/AP": 0, "mask/AP": 0, "box/AP/cat": 0}, id="nothing found"),
        pytest.param(
            [[CAT_1, DOG_1._replace(label=CAT, score=0.3)], [CAT_2]],
            {"box/AP/cat": 1, "box/AP/dog": 0, "box/AP": 0.5, "mask/AP": 0.5},
            id="a dog called cat, less sure than both cats",
        ),
        pytest.param(
            # Precision is 0, then 1/2, then 2/3; a lower recall takes the best precision of those above.
            [[CAT_1, DOG_1._replace(label=CAT, score=0.95)], [CAT_2]],
            {"box/AP/cat": 2 / 3, "box/AP/dog": 0, "box/AP": 1 / 3, "mask/AP": 1 / 3},
            id="a dog called cat, surer than both cats",
        ),
        pytest.param(
            # 24 px wide, 4 px aside: IoU 20/28 = 0.71, above 0.50, 0.55, ..., 0.70 and below the five others.
            [[CAT_1, DOG_1._replace(box=(32, 8, 56, 40))], [CAT_2]],
            {"box/AP/dog": 0.5, "mask/AP/dog": 0.5, "box/AP50": 1, "box/AP75": 0.5, "box/AP": 0.75},
            id="a box aside",
        ),
        pytest.param(
            # IoU 16/28 = 0.57, above 0.50 and 0.55: there both cats are right, at the eight others the surer one alone.
            [[CAT_1._replace(mask=UPPER), DOG_1], [CAT_2]],
            {"box/AP": 1, "mask/AP/cat": (2 + 8 * HALF) / 10, "mask/AP/dog": 1, "mask/AP50": 1, "mask/AP75": (HALF + 1) / 2},
            id="half a mask",
        ),
        pytest.param(
            # Without suppression it would come second of three cats: precision 1, 1/2, 2/3.
            [[CAT_1, DOG_1, CAT_1._replace(box=(6, 4, 34, 32), score=0.65)], [CAT_2._replace(score=0.5)]],
            {"box/AP": 1, "mask/AP": 1},
            id="one cat found twice",
        ),
        pytest.param(
            [[CAT_1, DOG_1._replace(score=0.04)], [CAT_2]],
            {"box/AP/dog": 0, "box/AP": 0.5},
            id="a score below the threshold of 0.05",
        ),
    ],
)  # fmt: skip
def test_average_precision_is_what_it_must_be(found, expected, tmp_path, monkeypatch):
    metrics = metrics_of(found, tmp_path, monkeypatch)
    assert {name: metrics[name] for name in expected} == pytest.approx(expected, abs=1e-6)
