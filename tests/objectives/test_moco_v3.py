"""MoCo v3's term: against the plain restatement, and its properties."""

import dataclasses

import pytest
import torch
from torch import nn

from selfpatch.config import ObjectivesConfig
from selfpatch.config.objectives.moco_v3 import MoCoV3Config
from selfpatch.objectives.moco_v3 import info_nce
from selfpatch.pretraining.views import Views
from tests.reference.plain_contrastive import mlp, moco_v3_loss
from tests.small_models import random_crops, tiny_config, tiny_student_teacher


def student_teacher_of(**settings):
    moco = MoCoV3Config(hidden_dim=24, output_dim=16, **settings)
    config = dataclasses.replace(tiny_config(), objectives=ObjectivesConfig(dino=None, moco_v3=moco))
    return tiny_student_teacher(config).eval(), Views(*random_crops(config))


def layers_of(module: nn.Sequential) -> list[tuple]:
    linear = [layer for layer in module if isinstance(layer, nn.Linear)]
    norms = [layer.norm for layer in module if hasattr(layer, "norm")]
    assert len(linear) == len(norms) and not any(layer.bias is not None for layer in linear)
    return [(layer.weight, norm.weight, norm.bias) for layer, norm in zip(linear, norms, strict=True)]


@pytest.mark.parametrize(("projector_layers", "predictor_layers"), [(3, 2), (2, 1)])
def test_the_loss_equals_the_plain_restatement(projector_layers, predictor_layers):
    student_teacher, views = student_teacher_of(
        temperature=0.3, projector_layers=projector_layers, predictor_layers=predictor_layers
    )
    objective = student_teacher.objectives["moco_v3"]
    with torch.no_grad():
        for parameter in [*student_teacher.teacher.parameters(), *objective.teacher_projector.parameters()]:
            parameter += 0.05 * torch.randn_like(parameter)
        student = student_teacher.student.encode(views.global_crops, None)
        teacher = student_teacher.teacher.encode(views.global_crops, None)
        loss, signals = objective(student, teacher, 0)
        projector, teacher_projector, predictor = map(
            layers_of, (objective.projector, objective.teacher_projector, objective.predictor)
        )
        assert (len(projector), len(predictor)) == (projector_layers, predictor_layers)
        crops = student.global_crops.image_token.unflatten(0, (2, -1))
        queries = [mlp(predictor, mlp(projector, tokens)) for tokens in crops]
        keys = [mlp(teacher_projector, tokens) for tokens in teacher.global_crops.image_token.unflatten(0, (2, -1))]
    assert loss.item() == pytest.approx(moco_v3_loss(queries, keys, 0.3), rel=1e-4)
    assert 0 <= signals["accuracy"] <= 1


def test_equal_keys_cannot_be_told_apart_and_different_ones_can():
    keys = torch.eye(5)
    loss, accuracy = info_nce(keys, torch.ones(5, 5), 0.2)
    torch.testing.assert_close(loss, 0.4 * torch.tensor(5.0).log())
    loss, accuracy = info_nce(3 * keys, 7 * keys, 0.01)
    assert loss < 1e-6 and accuracy == 1
    _, accuracy = info_nce(keys, keys.roll(1, dims=0), 0.01)
    assert accuracy == 0


def test_the_patch_embedding_stays_as_it_was_drawn_when_frozen():
    for freeze in (False, True):
        student_teacher, _ = student_teacher_of(freeze_patch_embed=freeze)
        frozen = student_teacher.frozen_parameters(10**6)
        assert {id(p) for p in frozen} == (
            {id(p) for p in student_teacher.student.backbone.model.patch_embed.parameters()} if freeze else set()
        )


def test_no_gradient_reaches_keys_and_no_local_crop_is_encoded():
    student_teacher, views = student_teacher_of()
    objective = student_teacher.objectives["moco_v3"]
    assert not objective.needs.student_local and not objective.needs.teacher_local
    loss, _ = student_teacher(views, 0)
    loss.backward()
    assert all(p.grad is not None for p in [*objective.projector.parameters(), *objective.predictor.parameters()])
    assert all(p.grad is None for _, teacher in student_teacher.ema_pairs() for p in teacher.parameters())
