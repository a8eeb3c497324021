"""Semantic FPN and UPerNet with weights set by hand, through the whole task: every score can be told beforehand.

The backbone's maps say of every patch which color it has, one channel per color, and the decoder hands on one of them,
the finest or the coarsest of the pyramid: a pixel gets the class of its color. So wrong are the pixels whose color is
not that of their class.
"""

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from selfpatch.backbones.backbone import Backbone, Stage
from selfpatch.evaluation.protocols.semantic_fpn import SemanticFPN
from selfpatch.evaluation.protocols.upernet import UPerNet
from selfpatch.evaluation.segmentation import semantic_segmentation
from selfpatch.evaluation.segmentation.semantic_segmentation import semantic_fpn, upernet
from selfpatch.evaluation.task import EvalContext
from tests.evaluation.labeled_scenes import COLORS, save_pair

PATCH = 8
CLASSES = len(COLORS)
# The one training step that there must be changes nothing that 1e-9 of a learning rate could show.
ONE_STEP = {
    "image_size": 32, "long_side": 64, "stride": 32, "steps": 1, "warmup_steps": 0, "batch_size": 2, "lr": 1e-9, "head_channels": CLASSES,
    "dropout": 0.0, "drop_path": 0.0, "photometric_distortion": False,
}  # fmt: skip
TASKS = {
    "semantic-fpn": (semantic_fpn, SemanticFPN(fpn_channels=CLASSES, **ONE_STEP)),
    "upernet": (upernet, UPerNet(auxiliary_weight=0.0, **ONE_STEP)),
}


class ColorChannels(Backbone):
    """Twelve stages of maps with one channel per color, 1 where a patch has that color."""

    embed_dim = CLASSES
    patch_size = (PATCH, PATCH)
    mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    stages = [Stage(CLASSES, (PATCH, PATCH))] * 12

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def set_image_size(self, size): ...

    def set_drop_path(self, rate): ...

    def set_activation_checkpointing(self, mode): ...

    def forward_intermediates(self, images, indices):
        middles = images[:, :, PATCH // 2 :: PATCH, PATCH // 2 :: PATCH]
        colors = torch.from_numpy(COLORS).float() / 255
        is_color = (middles[:, None] - colors[:, :, None, None]).abs().amax(dim=2) < 1e-3
        return [self.scale * is_color.float()] * len(indices)


def write_stripes(root, labels: list[int], colors: list[int], *, width=16):
    """A validation image of vertical stripes of these colors, and a mask of these labels; one image to train on."""
    stripes = np.array(colors, np.uint8).repeat(width)[None].repeat(32, axis=0)
    mask = np.array(labels, np.uint8).repeat(width)[None].repeat(32, axis=0)
    save_pair(root / "images/validation/a.png", root / "annotations/validation/a.png", mask + 1, COLORS[stripes])
    every = np.arange(CLASSES, dtype=np.uint8).repeat(width)[None].repeat(32, axis=0)
    save_pair(root / "images/training/b.png", root / "annotations/training/b.png", every + 1, COLORS[every])
    return root


def pass_on(convolution: nn.Conv2d, *, first: int = 0) -> None:
    """Weights that hand on as many channels as come out, beginning at `first`, place by place."""
    with torch.no_grad():
        convolution.weight.zero_()
        if convolution.bias is not None:
            convolution.bias.zero_()
        middle = convolution.kernel_size[0] // 2
        for channel in range(convolution.out_channels):
            convolution.weight[channel, first + channel, middle, middle] = 1


def silence(convolution: nn.Conv2d) -> None:
    with torch.no_grad():
        convolution.weight.zero_()


def by_hand(build, level):
    def built(backbone, num_classes, protocol):
        segmenter = build(backbone, num_classes, protocol)
        for name, module in segmenter.named_modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 0.0  # means of 0 and variances of 1 stay
            if isinstance(module, nn.Conv2d):
                silence(module) if "psp_modules" in name else pass_on(module)
        for place, lateral in enumerate(segmenter.neck.lateral_convs):
            pass_on(lateral.conv) if place == level else silence(lateral.conv)
        return segmenter

    return built


def score(task, level, root, tmp_path, monkeypatch):
    build, protocol = TASKS[task]
    monkeypatch.setattr(semantic_segmentation, build.__name__, by_hand(build, level))
    run = getattr(semantic_segmentation, f"run_{build.__name__}")
    return run(ColorChannels(), root, protocol, EvalContext(tmp_path / "out")).metrics


each_way = pytest.mark.parametrize(("task", "level"), list(itertools.product(TASKS, (0, 3))))


@each_way
def test_every_pixel_is_right_where_colors_tell_the_class(task, level, tmp_path, monkeypatch):
    root = write_stripes(tmp_path / "data", [2, 0, 1, 3], [2, 0, 1, 3])
    metrics = score(task, level, root, tmp_path, monkeypatch)
    assert metrics == dict.fromkeys(["mIoU", "mIoU-matched", "aAcc", "mAcc", "IoU/1", "IoU/2", "IoU/3", "IoU/4"], 1.0)


@each_way
def test_two_thirds_are_right_where_a_color_lies(task, level, tmp_path, monkeypatch):
    """Three stripes of classes 1, 2, 3, of which the last has the color of class 2.

    IoU of class 1 is 1; of class 2 one stripe of two, 1/2; of class 3 0. Class 4 does not occur. mAcc is (1 + 1 + 0) / 3.
    """
    metrics = score(task, level, write_stripes(tmp_path / "data", [0, 1, 2], [0, 1, 1]), tmp_path, monkeypatch)
    assert metrics == pytest.approx(
        {"mIoU": 0.5, "mIoU-matched": 0.5, "aAcc": 2 / 3, "mAcc": 2 / 3, "IoU/1": 1.0, "IoU/2": 0.5, "IoU/3": 0.0}
    )


@each_way
def test_classes_by_another_name_are_matched(task, level, tmp_path, monkeypatch):
    """Colors say 2 where 1 is, and 1 where 2 is: nothing is right by name, all is after renaming."""
    metrics = score(task, level, write_stripes(tmp_path / "data", [0, 1], [1, 0], width=24), tmp_path, monkeypatch)
    assert (metrics["mIoU"], metrics["aAcc"], metrics["mIoU-matched"]) == (0, 0, 1)
