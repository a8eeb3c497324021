"""Layer-wise learning rates against timm's own grouping and against a count of layers by hand."""

import re

import pytest
from timm.optim import param_groups_layer_decay

from selfpatch.config import OptimConfig
from selfpatch.optim.optimizer import layer_lr_scales, parameter_groups, set_schedules
from selfpatch.pretraining.student_teacher import build_student_teacher
from selfpatch.pretraining.train_step import build_optimizer
from tests.backbones.small_swin import small_swin
from tests.backbones.small_vits import FAMILIES, small_vit
from tests.small_models import tiny_config, tiny_student_teacher

DECAY = 0.7


@pytest.mark.parametrize("family", [*FAMILIES, "Swin"])
def test_scales_are_those_of_timm(family):
    model = (small_swin() if family == "Swin" else small_vit(family)).model
    theirs = {
        parameter: group["lr_scale"]
        for group in param_groups_layer_decay(model, layer_decay=DECAY)
        for parameter in group["params"]
    }
    assert layer_lr_scales(model, DECAY) == theirs


def test_scales_by_hand():
    """Three blocks: the third and the final norm 1, each one below 0.7 of it, everything before the blocks 0.7 ** 3."""
    model = small_vit("registers", depth=3).model
    scales = layer_lr_scales(model, DECAY)
    for name, parameter in model.named_parameters():
        block = re.match(r"blocks\.(\d)", name)
        above = 2 - int(block[1]) if block else 0 if name.startswith("norm.") else 3
        assert scales[parameter] == pytest.approx(DECAY**above), name


def test_stages_of_a_swin_by_hand():
    """Stages of one and two blocks: block 1.1 with the norm, 1.0 with the downsampling before it, 0.0, stem."""
    model = small_swin().model
    scales = layer_lr_scales(model, DECAY)
    above = {"norm": 0, "layers.1.blocks.1": 0, "layers.1.blocks.0": 1, "layers.1.downsample": 1}
    above |= {"layers.0.blocks.0": 2, "patch_embed": 3}
    for name, parameter in model.named_parameters():
        (part,) = [part for part in above if name.startswith(f"{part}.")]
        assert scales[parameter] == pytest.approx(DECAY ** above[part]), name


def test_rates_and_weight_decay_of_every_parameter():
    """Heads and aggregator have the whole rate; no parameter is lost or met twice; decay is for matrices alone."""
    student_teacher = tiny_student_teacher(tiny_config())
    optimizer = build_optimizer(student_teacher, OptimConfig(layer_decay=0.5))
    set_schedules(optimizer, lr=8.0, weight_decay=0.3)
    names = {parameter: name for name, parameter in student_teacher.named_parameters()}
    found = {
        names[p]: (group["lr"], group["weight_decay"]) for group in optimizer.param_groups for p in group["params"]
    }
    assert found.keys() == {name for name, p in student_teacher.named_parameters() if p.requires_grad}
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(found)
    for name, (lr, weight_decay) in found.items():
        own = name.removeprefix("student.backbone.model.")
        assert lr == (
            8.0 if own == name or own.startswith("blocks.1.") else 4.0 if own.startswith("blocks.0.") else 2.0
        )
        is_matrix = dict(student_teacher.named_parameters())[name].ndim > 1
        assert weight_decay == (0.3 if is_matrix else 0.0), name


@pytest.mark.parametrize("layer_decay", [None, 1.0])
def test_without_decay_there_are_the_two_groups_of_ever(layer_decay):
    student_teacher = tiny_student_teacher(tiny_config())
    groups = build_optimizer(student_teacher, OptimConfig(layer_decay=layer_decay)).param_groups
    plain = parameter_groups(student_teacher)
    assert len(groups) == 2
    for group, other in zip(groups, plain, strict=True):
        assert all(a is b for a, b in zip(group["params"], other["params"], strict=True))
        assert group["decays"] == other["decays"]


@pytest.mark.parametrize("num_blocks", [1, 2])
def test_last_blocks_alone(num_blocks):
    backbone = small_vit("registers", depth=3)
    backbone.enable_masks()
    config = tiny_config(optim=OptimConfig(trainable_blocks=num_blocks))
    student_teacher = build_student_teacher(backbone, config, steps_per_epoch=4)
    trained = {name for name, p in student_teacher.student.backbone.model.named_parameters() if p.requires_grad}
    expected = {"norm.weight", "norm.bias"}
    for block in range(3 - num_blocks, 3):
        expected |= {f"blocks.{block}.{name}" for name, _ in backbone.blocks[block].named_parameters()}
    assert trained == expected
    assert all(p.requires_grad for p in student_teacher.student.aggregator.parameters())
    optimized = {
        id(p) for group in build_optimizer(student_teacher, config.optim).param_groups for p in group["params"]
    }
    assert id(backbone.blocks[0].mlp.fc1.weight) not in optimized


def test_last_blocks_of_a_swin_have_the_downsampling_between_them():
    backbone = small_swin()
    backbone.freeze_below_last_blocks(3)
    frozen = {name.split(".")[0] for name, p in backbone.model.named_parameters() if not p.requires_grad}
    assert frozen == {"patch_embed"}
    backbone = small_swin()
    backbone.freeze_below_last_blocks(2)
    assert not any(p.requires_grad for p in backbone.model.layers[1].downsample.parameters())
