"""NeCo against its plain restatement, and what must hold."""

import dataclasses

import pytest
import torch

from selfpatch.config import ObjectivesConfig
from selfpatch.config.objectives.neco import NeCoConfig
from selfpatch.errors import UserError
from selfpatch.objectives import neco
from selfpatch.pretraining.student_teacher import StudentTeacher
from selfpatch.pretraining.views import Views
from tests.reference.plain_neco import Crop, neco_loss
from tests.small_models import random_crops, tiny_config, tiny_student_teacher

SETTINGS = NeCoConfig(overlap_size=2, hidden_dim=32, output_dim=16, student_steepness=20, teacher_steepness=50)
# Of two global crops of two images, some flipped, and two local ones, the last of which shares a mere corner with one.
GLOBAL = torch.tensor([[[10.0, 5, 70, 65], [0, 0, 100, 80]], [[90.0, 0, 30, 60], [20, 10, 52, 42]]])
LOCAL = torch.tensor([[[40.0, 20, 60, 40], [60, 10, 30, 40]], [[12.0, 8, 50, 40], [100, 41, 51.9, 60]]])


def student_teacher_of(settings: NeCoConfig = SETTINGS) -> StudentTeacher:
    config = dataclasses.replace(tiny_config(), objectives=ObjectivesConfig(dino=None, neco=settings))
    student_teacher = tiny_student_teacher(config).eval()
    with torch.no_grad():
        for parameter in student_teacher.teacher.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return student_teacher


def views_of(**boxes: torch.Tensor) -> Views:
    global_crops, local_crops = random_crops(tiny_config(), batch_size=2)
    return Views(global_crops, local_crops, None, None, GLOBAL, LOCAL)._replace(**boxes)


@pytest.fixture
def orders(monkeypatch) -> list[torch.Tensor]:
    """The orders of reference patches, as they are drawn."""
    drawn, randperm = [], torch.randperm
    monkeypatch.setattr(
        neco.torch, "randperm", lambda *args, **more: drawn.append(randperm(*args, **more)) or drawn[-1]
    )
    return drawn


@pytest.mark.parametrize(
    "changes",
    [{}, dict(crops="global"), dict(sorting_network="odd_even"), dict(overlap_size=3, crops="global")],
    ids=str,
)
def test_loss_equals_the_plain_restatement(changes, orders):
    settings = dataclasses.replace(SETTINGS, **changes)
    student_teacher, views = student_teacher_of(settings), views_of()
    objective = student_teacher.objectives["neco"]
    with torch.no_grad():
        _, metrics = student_teacher(views, 0)

        def crops_of(network, projector, crops, boxes):
            side = crops.shape[-1] // 8
            tokens = network.encode(crops, None).global_crops.tokens.patch_tokens
            vectors = torch.nn.functional.normalize(projector(network.norm(tokens)), dim=-1)
            vectors = vectors.unflatten(0, crops.shape[:2])
            return [
                [Crop(v, (side, side), box.tolist()) for v, box in zip(*view, strict=True)]
                for view in zip(vectors, boxes, strict=True)
            ]

        student = crops_of(student_teacher.student, objective.projector, views.global_crops, GLOBAL)
        if settings.crops == "all":
            student += crops_of(student_teacher.student, objective.projector, views.local_crops, LOCAL)
        teacher = crops_of(student_teacher.teacher, objective.teacher_projector, views.global_crops, GLOBAL)
        assert len(orders) == (6 if settings.crops == "all" else 2)
        expected = neco_loss(student, teacher, settings, orders)
    torch.testing.assert_close(metrics["neco/loss"], expected, rtol=1e-4, atol=1e-5)
    assert 0.5 < metrics["neco/overlap_fraction"] <= (0.95 if settings.crops == "all" else 1)


def test_of_identical_networks_on_identical_crops_the_loss_is_the_teachers_entropy():
    settings = dataclasses.replace(SETTINGS, student_steepness=50, crops="global")
    config = dataclasses.replace(tiny_config(), objectives=ObjectivesConfig(dino=None, neco=settings))
    views = views_of(global_boxes=torch.tensor([0.0, 0, 9, 9]).expand(2, 2, 4))
    same = views._replace(global_crops=views.global_crops[:1].expand(2, -1, -1, -1, -1))
    _, metrics = tiny_student_teacher(config).eval()(same, 0)
    torch.testing.assert_close(metrics["neco/kl"], torch.zeros(()), rtol=0, atol=1e-4)
    # A crop against its mirror image agrees, too, once it is turned back.
    _, metrics = tiny_student_teacher(config).eval()(views, 0)
    assert metrics["neco/kl"] > 0.01


def test_steps_along_the_gradient_bring_the_orders_together():
    torch.manual_seed(0)
    student_teacher, views = student_teacher_of(), views_of()
    optimizer = torch.optim.Adam([p for p in student_teacher.parameters() if p.requires_grad], lr=3e-3)
    kl = []
    for _ in range(30):
        loss, metrics = student_teacher(views, 0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        kl.append(metrics["neco/kl"].item())
    assert sum(kl[-5:]) < 0.7 * sum(kl[:5])


def test_crops_that_do_not_overlap_make_no_loss_and_no_gradient():
    apart = torch.tensor([[[0.0, 0, 9, 9]] * 2, [[20.0, 0, 29, 9]] * 2])
    student_teacher = student_teacher_of(dataclasses.replace(SETTINGS, crops="global"))
    loss, metrics = student_teacher(views_of(global_boxes=apart), 0)
    loss.backward()
    assert loss == 0 and metrics["neco/overlap_fraction"] == 0 and metrics["neco/kl"] == 0
    assert not any(p.grad.any() for p in student_teacher.parameters() if p.grad is not None)


def test_very_steep_comparisons_stay_finite():
    student_teacher = student_teacher_of(dataclasses.replace(SETTINGS, student_steepness=1e30, teacher_steepness=1e30))
    loss, metrics = student_teacher(views_of(), 0)
    loss.backward()
    assert all(torch.isfinite(value) for value in metrics.values())
    assert all(torch.isfinite(p.grad).all() for p in student_teacher.parameters() if p.grad is not None)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (dict(overlap_size=9), "overlap-size is 9; it must be in \\[2, 8\\]"),
        (dict(student_steepness=0.0), "student-steepness is 0.0; it must be above 0"),
    ],
)
def test_settings_out_of_range(settings, words):
    with pytest.raises(UserError, match=words):
        NeCoConfig(**settings)
