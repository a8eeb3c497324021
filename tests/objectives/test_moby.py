"""MoBY: against the plain restatement, and what its queue takes in and gives up."""

import dataclasses

import pytest
import torch
from torch import nn

from selfpatch.config import ObjectivesConfig
from selfpatch.config.objectives.moby import MoBYConfig
from selfpatch.objectives.moby import MoBY, info_nce
from selfpatch.pretraining.student_teacher import StudentTeacher
from selfpatch.pretraining.views import Views
from tests.reference.plain_contrastive import hidden_norm_mlp, moby_loss
from tests.small_models import random_crops, tiny_config, tiny_student_teacher


def student_teacher_of(**settings) -> tuple[StudentTeacher, MoBY, Views]:
    moby = MoBYConfig(**({"hidden_dim": 24, "output_dim": 16, "queue_size": 10} | settings))
    config = dataclasses.replace(tiny_config(), objectives=ObjectivesConfig(dino=None, moby=moby))
    student_teacher = tiny_student_teacher(config).eval()
    objective = student_teacher.objectives["moby"]
    assert isinstance(objective, MoBY)
    return student_teacher, objective, Views(*random_crops(config))


def layers_of(module: nn.Sequential) -> list[tuple]:
    linear = [layer for layer in module if isinstance(layer, nn.Linear)]
    norms = [(layer.norm.weight, layer.norm.bias) for layer in module if hasattr(layer, "norm")]
    assert len(norms) == len(linear) - 1
    return [(layer.weight, layer.bias, *norm) for layer, norm in zip(linear, [*norms, (None, None)], strict=True)]


@pytest.mark.parametrize(("projector_layers", "predictor_layers"), [(2, 2), (3, 1)])
@torch.no_grad()
def test_the_loss_equals_the_plain_restatement(projector_layers, predictor_layers):
    student_teacher, objective, views = student_teacher_of(
        temperature=0.3, projector_layers=projector_layers, predictor_layers=predictor_layers
    )
    for parameter in [*student_teacher.teacher.parameters(), *objective.teacher_projector.parameters()]:
        parameter += 0.05 * torch.randn_like(parameter)
    student = student_teacher.student.encode(views.global_crops, None)
    teacher = student_teacher.teacher.encode(views.global_crops, None)
    loss, signals = objective(student, teacher, 0)
    projector, teacher_projector, predictor = map(
        layers_of, (objective.projector, objective.teacher_projector, objective.predictor)
    )
    assert (len(projector), len(predictor)) == (projector_layers, predictor_layers)
    student_tokens, teacher_tokens = (v.global_crops.image_token.unflatten(0, (2, -1)) for v in (student, teacher))
    queries = [hidden_norm_mlp(predictor, hidden_norm_mlp(projector, tokens)) for tokens in student_tokens]
    keys = [hidden_norm_mlp(teacher_projector, tokens) for tokens in teacher_tokens]
    assert loss.item() == pytest.approx(moby_loss(queries, keys, objective.queues, 0.3), rel=1e-4)
    assert 0 <= signals["accuracy"] <= 1

    # The keys of a crop enter its queue after the step, in the place of the oldest, which are the first.
    before = objective.queues.clone()
    objective.commit()
    for queue, crop_keys, old in zip(objective.queues, keys, before, strict=True):
        torch.testing.assert_close(queue[:4], nn.functional.normalize(crop_keys, dim=-1))
        assert torch.equal(queue[4:], old[4:])
    assert objective.next_place == 4


@torch.no_grad()
def test_the_queue_goes_round_takes_all_parts_of_a_batch_and_nothing_of_a_skipped_one():
    student_teacher, objective, views = student_teacher_of()
    for _ in range(3):
        student_teacher(views, 0)  # three parts of four images, where ten places are
    entering = torch.cat(objective._keys, dim=1)
    objective.commit()
    torch.testing.assert_close(objective.queues, entering[:, -10:])
    assert objective.next_place == 0
    student_teacher(views, 0)
    objective.commit()
    assert objective.next_place == 4
    before = {name: value.clone() for name, value in objective.state_dict().items()}
    student_teacher(views, 0)
    student_teacher(views, 0)
    student_teacher.discard()
    objective.commit()
    assert all(torch.equal(value, before[name]) for name, value in objective.state_dict().items())
    for _ in range(2):
        student_teacher(views, 0)
        objective.commit()
    assert objective.next_place == 2  # 12 of 10


def test_a_right_key_stands_out_and_a_queue_of_it_cannot_be_told_apart():
    keys = torch.eye(5)
    loss, accuracy = info_nce(keys, keys, -keys, 0.01)
    assert loss < 1e-6 and accuracy == 1
    loss, _ = info_nce(keys, keys, keys[:1].expand(3, -1), 0.2)
    torch.testing.assert_close(loss, (torch.tensor(4.0).log() + 4 * (1 + 3 * torch.tensor(-5.0).exp()).log()) / 5)


def test_the_student_has_stochastic_depth_and_the_teacher_none():
    student_teacher, _, _ = student_teacher_of()
    student_teacher.train()
    depths = [
        [module.drop_prob for module in network.modules() if hasattr(module, "drop_prob")]
        for network in (student_teacher.student, student_teacher.teacher)
    ]
    assert any(depths[0]) and not any(depths[1])
