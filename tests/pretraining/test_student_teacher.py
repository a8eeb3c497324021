"""Student and teacher together: moving average, accumulation, skipped steps, deployment."""

import contextlib
import dataclasses

import pytest
import torch

from selfpatch.backbones.pretrained import load_backbone
from selfpatch.config import DINOConfig, EfficiencyConfig, ObjectivesConfig
from selfpatch.export import export_timm
from selfpatch.pretraining.student_teacher import apply_efficiency
from selfpatch.pretraining.train_step import accumulate_gradients, apply_gradients, build_optimizer, build_schedules
from selfpatch.pretraining.views import Views
from tests.small_models import HEAD, random_crops, tiny_config, tiny_student_teacher


def one_step(student_teacher, config, parts, step=0):
    optimizer = build_optimizer(student_teacher)
    schedules = build_schedules(config.optim, config.teacher, num_steps=8, steps_per_epoch=4)
    views = [Views(*part) for part in parts]
    metrics = accumulate_gradients(student_teacher, views, step, contextlib.nullcontext, num_parts=len(parts))
    accepted = apply_gradients(
        student_teacher, optimizer, metrics["loss"], step, schedules=schedules, optim=config.optim
    )
    return metrics, accepted


def without_drop_path(config):
    return dataclasses.replace(config, backbone=dataclasses.replace(config.backbone, drop_path=0.0))


def test_teachers_start_as_copies_and_follow():
    config = tiny_config()
    student_teacher = tiny_student_teacher(config)
    pairs = [(s, t) for s, t in student_teacher.ema_pairs()]
    for student, teacher in pairs:
        assert all(torch.equal(a, b) for a, b in zip(student.parameters(), teacher.parameters(), strict=True))
    before = {n: p.clone() for n, p in student_teacher.named_parameters()}
    _, accepted = one_step(student_teacher, config, [random_crops(config)], step=3)
    assert accepted
    momentum = build_schedules(config.optim, config.teacher, num_steps=8, steps_per_epoch=4).momentum(3)
    for student, teacher in student_teacher.ema_pairs():
        names = [n for n, p in student_teacher.named_parameters() if any(p is q for q in teacher.parameters())]
        for name, s, t in zip(names, student.parameters(), teacher.parameters(), strict=True):
            torch.testing.assert_close(t, momentum * before[name] + (1 - momentum) * s, rtol=1e-5, atol=1e-7)


def test_an_accumulated_batch_is_the_same_step():
    config = without_drop_path(tiny_config())
    crops = random_crops(config, batch_size=4)
    whole, parts = tiny_student_teacher(config), tiny_student_teacher(config)
    before = {name: value.clone() for name, value in whole.state_dict().items()}
    metrics, _ = one_step(whole, config, [crops], step=3)
    halves = [tuple(c[:, i : i + 2] for c in crops) for i in (0, 2)]
    metrics_of_parts, _ = one_step(parts, config, halves, step=3)
    torch.testing.assert_close(metrics_of_parts["loss"], metrics["loss"], rtol=1e-5, atol=1e-6)
    for (name, a), b in zip(whole.state_dict().items(), parts.state_dict().values(), strict=True):
        if not name.endswith(("attn.k.bias", "qkv.bias")):  # keys' biases have rounding noise for a gradient
            # By the norm of the step: where a gradient is nearly 0, AdamW makes a whole step of its rounding.
            assert (a - b).norm() <= 1e-2 * (a - before[name]).norm() + 1e-6, name


def test_gradients_of_parts_add_up_to_those_of_the_batch():
    config = without_drop_path(tiny_config())
    crops = random_crops(config, batch_size=4)
    whole, parts = tiny_student_teacher(config), tiny_student_teacher(config)
    halves = [Views(*(c[:, i : i + 2] for c in crops)) for i in (0, 2)]
    accumulate_gradients(whole, [Views(*crops)], 3, contextlib.nullcontext)
    accumulate_gradients(parts, halves, 3, contextlib.nullcontext, num_parts=2)
    for (name, a), b in zip(whole.named_parameters(), parts.parameters(), strict=True):
        if a.grad is not None and not name.endswith(("attn.k.bias", "qkv.bias")):
            assert (a.grad - b.grad).norm() <= 1e-4 * a.grad.norm(), name


@pytest.mark.parametrize("poison", ["loss", "gradient"])
def test_a_step_that_is_not_finite_changes_nothing(poison):
    config = tiny_config()
    student_teacher = tiny_student_teacher(config)
    before = {n: v.clone() for n, v in student_teacher.state_dict().items()}
    global_crops, local_crops = random_crops(config)
    if poison == "loss":
        global_crops[0, 0, 0, 0, 0] = float("nan")
        handle = contextlib.nullcontext()
    else:
        parameter = student_teacher.student.aggregator.query
        handle = contextlib.closing(_Hook(parameter.register_hook(lambda g: g * float("inf"))))
    with handle:
        _, accepted = one_step(student_teacher, config, [(global_crops, local_crops)], step=3)
    assert not accepted
    assert all(torch.equal(before[n], v) for n, v in student_teacher.state_dict().items())
    _, accepted = one_step(student_teacher, config, [random_crops(config)], step=3)
    assert accepted
    assert all(torch.isfinite(v).all() for v in student_teacher.state_dict().values())


class _Hook:
    def __init__(self, handle):
        self.close = handle.remove


def test_frozen_prototypes_stay_and_then_move():
    head = dataclasses.replace(HEAD, fix_prototype_norm=False, freeze_prototypes_epochs=1)
    config = tiny_config()
    config = dataclasses.replace(config, objectives=ObjectivesConfig(dino=DINOConfig(head=head)))
    student_teacher = tiny_student_teacher(config, steps_per_epoch=4)
    prototypes = student_teacher.objectives["dino"].branch.head.prototypes
    before = [p.clone() for p in prototypes.parameters()]
    one_step(student_teacher, config, [random_crops(config)], step=3)
    assert all(torch.equal(a, b) for a, b in zip(before, prototypes.parameters(), strict=True))
    one_step(student_teacher, config, [random_crops(config)], step=4)
    assert not any(torch.equal(a, b) for a, b in zip(before, prototypes.parameters(), strict=True))


def test_the_deployed_backbone_is_the_teacher_with_the_aggregators_norm():
    config = tiny_config()
    student_teacher = tiny_student_teacher(config)
    with torch.no_grad():
        student_teacher.teacher.aggregator.norm.weight.uniform_(0.5, 2.0)
    backbone = student_teacher.teacher.export_backbone()
    images = torch.randn(2, 3, 32, 48)
    with torch.no_grad():
        raw = student_teacher.teacher.eval().backbone(images).patch_tokens
        torch.testing.assert_close(backbone(images).patch_tokens, student_teacher.teacher.aggregator.norm(raw))
    assert not backbone.training


def test_the_teacher_has_no_stochastic_depth():
    student_teacher = tiny_student_teacher(tiny_config()).train()
    images = torch.randn(8, 3, 32, 32)
    with torch.no_grad():
        a, b = (student_teacher.teacher.backbone(images).patch_tokens for _ in range(2))
        c, d = (student_teacher.student.backbone(images).patch_tokens for _ in range(2))
    assert torch.equal(a, b)
    assert not torch.equal(c, d)


def test_a_few_steps_on_the_same_images_lower_the_loss():
    config = without_drop_path(tiny_config())
    student_teacher = tiny_student_teacher(config)
    optimizer = build_optimizer(student_teacher)
    schedules = build_schedules(config.optim, config.teacher, num_steps=60, steps_per_epoch=20)
    crops, losses = random_crops(config), []
    for step in range(30):
        metrics = accumulate_gradients(student_teacher, [Views(*crops)], step, contextlib.nullcontext)
        apply_gradients(student_teacher, optimizer, metrics["loss"], step, schedules=schedules, optim=config.optim)
        losses.append(metrics["loss"].item())
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize("pos_embed_interpolation", ["antialias", "offset"])
def test_recomputing_changes_memory_and_nothing_else(pos_embed_interpolation):
    config = tiny_config()
    backbone = dataclasses.replace(config.backbone, pos_embed_interpolation=pos_embed_interpolation)
    config = dataclasses.replace(config, backbone=backbone)
    gradients = []
    for checkpointing in ("none", "selective", "full"):
        student_teacher = tiny_student_teacher(config).train()
        apply_efficiency(student_teacher, EfficiencyConfig(activation_checkpointing=checkpointing))
        torch.manual_seed(0)  # the same stochastic depth
        loss, _ = student_teacher(Views(*random_crops(config)), 0)
        loss.backward()
        gradients.append([p.grad for p in student_teacher.parameters() if p.requires_grad])
    assert all(torch.equal(a, b) and torch.equal(a, c) for a, b, c in zip(*gradients, strict=True))


def test_pictures_of_positives_show_what_training_picks(tmp_path):
    config = tiny_config()
    student_teacher = tiny_student_teacher(config)
    with torch.no_grad():
        student_teacher.teacher.aggregator.norm.weight.uniform_(0.1, 3.0)
        student_teacher.teacher.aggregator.norm.bias.normal_()
    images = torch.randn(1, 3, 32, 32)  # the size it trains with: positions need no resampling
    export_timm(student_teacher.teacher.export_backbone(), tmp_path / "backbone.safetensors")
    shipped = load_backbone(tmp_path / "backbone.safetensors")
    with torch.no_grad():
        trained = student_teacher.teacher.eval().backbone(images)
        for backbone in (student_teacher.teacher.export_backbone(), shipped):
            torch.testing.assert_close(backbone.pre_norm_tokens(images).patch_tokens, trained.patch_tokens)
            assert not torch.allclose(backbone(images).patch_tokens, trained.patch_tokens)
