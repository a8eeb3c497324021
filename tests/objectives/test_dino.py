"""DINO's term and self-distillation: against the plain restatement, stored states, and Sinkhorn's properties."""

import dataclasses
import math

import pytest
import torch

from selfpatch.config import SelfDistillationConfig
from selfpatch.objectives.self_distillation import SelfDistillation, distillation_signals, sinkhorn
from selfpatch.pretraining.views import Views
from tests.reference import plain_sinkhorn
from tests.reference.plain_selfpatch import dino_loss
from tests.small_models import random_crops, tiny_config, tiny_student_teacher


@pytest.mark.parametrize("num_global", [2, 3])
def test_loss_equals_all_pairs_one_by_one(num_global):
    config = tiny_config()
    config = dataclasses.replace(config, crops=dataclasses.replace(config.crops, num_global=num_global))
    student_teacher = tiny_student_teacher(config).eval()
    term = student_teacher.objectives["dino"]
    term.branch.distillation.center.normal_(std=0.05)
    with torch.no_grad():
        crops = random_crops(config)
        student, teacher = (n.encode(*crops) for n in (student_teacher.student, student_teacher.teacher))
        loss, _ = term(student, teacher, 0)
        logits = [
            crop
            for crops in student.by_resolution
            for crop in term.branch.head(crops.image_token).unflatten(0, (-1, 4))
        ]
        teacher_logits = list(term.branch.teacher_head(teacher.global_crops.image_token).unflatten(0, (-1, 4)))
    expected = dino_loss(
        logits,
        teacher_logits,
        center=term.branch.distillation.center,
        student_temperature=0.1,
        teacher_temperature=0.04,
    )
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("center_crops", ["global", "all"])
def test_the_centre_follows_the_mean_logit_of_the_crops_it_is_told_of(center_crops):
    config = tiny_config()
    dino = dataclasses.replace(config.objectives.dino, center_crops=center_crops)
    config = dataclasses.replace(config, objectives=dataclasses.replace(config.objectives, dino=dino))
    student_teacher = tiny_student_teacher(config).eval()
    term = student_teacher.objectives["dino"]
    with torch.no_grad():
        teacher = student_teacher.teacher.encode(*random_crops(config))
        term(teacher, teacher, 0)
        sizes = teacher.by_resolution if center_crops == "all" else teacher.by_resolution[:1]
        logits = torch.cat([term.branch.teacher_head(crops.image_token) for crops in sizes])
    assert not term.branch.distillation.center.any(), "a target must not see its own step"
    term.commit()
    torch.testing.assert_close(term.branch.distillation.center, 0.1 * logits.mean(dim=0), rtol=1e-5, atol=1e-7)


def test_a_discarded_step_leaves_no_trace():
    config = tiny_config()
    student_teacher = tiny_student_teacher(config)
    student_teacher(Views(*random_crops(config, seed=1)), 0)
    student_teacher.discard()
    student_teacher(Views(*random_crops(config, seed=2)), 0)
    student_teacher.commit(0.9)
    other = tiny_student_teacher(config)
    other(Views(*random_crops(config, seed=2)), 0)
    other.commit(0.9)
    for name in ("dino", "selfpatch"):
        centers = [m.objectives[name].branch.distillation.center for m in (student_teacher, other)]
        torch.testing.assert_close(*centers, rtol=1e-3, atol=1e-4)  # stochastic depth is not seeded alike


def test_teacher_temperature_climbs_by_epochs():
    config = SelfDistillationConfig(warmup_teacher_temperature=0.04, teacher_temperature=0.07, warmup_epochs=4)
    temperature = SelfDistillation(8, config, steps_per_epoch=10).teacher_temperature
    stairs = [temperature(step) for step in (0, 9, 10, 29, 30, 39, 40, 1000)]
    assert stairs == pytest.approx([0.04, 0.04, 0.05, 0.06, 0.07, 0.07, 0.07, 0.07])


def test_sinkhorn_equals_the_plain_restatement():
    scores = 8 * torch.randn(7, 5, generator=torch.Generator().manual_seed(0))
    for num_iterations in (1, 3):
        expected = torch.tensor(plain_sinkhorn.sinkhorn(scores.tolist(), num_iterations))
        torch.testing.assert_close(sinkhorn(scores, num_iterations), expected, rtol=1e-4, atol=1e-6)
        rows_first = torch.tensor(plain_sinkhorn.sinkhorn(scores.tolist(), num_iterations, rows_first=True))
        torch.testing.assert_close(sinkhorn(scores, num_iterations, first="rows"), rows_first, rtol=1e-4, atol=1e-6)
        assert (rows_first - expected).abs().max() > 0.01
    # Prototypes that next to no row wants: their load has a least.
    sharp = 8 * scores
    rows_first = torch.tensor(plain_sinkhorn.sinkhorn(sharp.tolist(), rows_first=True))
    torch.testing.assert_close(sinkhorn(sharp, first="rows"), rows_first, rtol=1e-4, atol=1e-6)
    for first in ("rows", "prototypes"):
        config = SelfDistillationConfig(centering="sinkhorn", sinkhorn_first=first)
        targets = SelfDistillation(5, config, steps_per_epoch=10).targets(scores, 0)
        torch.testing.assert_close(targets, sinkhorn(scores / 0.04, first=first))
    # Sharper than float32 can hold the exponentials of.
    assert torch.isfinite(sinkhorn(300 * scores)).all()


def test_sinkhorn_balances_prototypes_and_keeps_rows_whole():
    scores = torch.randn(60, 6, generator=torch.Generator().manual_seed(0)) * 3 + torch.tensor([5.0, 0, 0, 0, 0, 0])
    assert scores.softmax(dim=-1).mean(dim=0).max() > 0.6
    balanced = sinkhorn(scores, num_iterations=100)
    torch.testing.assert_close(balanced.sum(dim=-1), torch.ones(60))
    torch.testing.assert_close(balanced.mean(dim=0), torch.full((6,), 1 / 6), rtol=1e-3, atol=1e-3)
    # Adding a number to a row or a column of the scores changes nothing: both are normalised.
    shifted = sinkhorn(scores + torch.arange(60.0)[:, None] + torch.arange(6.0), num_iterations=100)
    torch.testing.assert_close(shifted, balanced, rtol=1e-3, atol=1e-3)


def test_signals_tell_both_collapses_from_health():
    k = 16
    uniform = torch.full((64, k), 1 / k)
    one = torch.zeros(64, k).index_fill_(1, torch.tensor([3]), 1.0)
    healthy = torch.eye(k).repeat(4, 1)
    values = {
        name: distillation_signals(t, torch.tensor(1.0))
        for name, t in dict(uniform=uniform, one=one, healthy=healthy).items()
    }
    assert values["uniform"]["mutual_information"] == pytest.approx(0, abs=1e-6)
    assert values["uniform"]["teacher_entropy"] == pytest.approx(1)
    assert values["one"]["mutual_information"] == pytest.approx(0, abs=1e-6)
    assert values["one"]["mean_teacher_entropy"] == pytest.approx(0, abs=1e-6)
    assert values["one"]["prototypes_used"] == pytest.approx(1 / k)
    assert values["healthy"]["mutual_information"] == pytest.approx(1)
    assert values["healthy"]["prototypes_used"] == 1
    assert values["uniform"]["kl"] == pytest.approx(1 - math.log(k))


def test_prototypes_used_is_a_fraction_of_what_could_be_seen():
    """4 rows can use 4 of 100 prototypes at most: that they use 4 is no sign of collapse."""
    assert distillation_signals(torch.eye(100)[:4], torch.tensor(1.0))["prototypes_used"] == 1


@pytest.mark.parametrize("name", ["dino", "selfpatch"])
def test_kl_is_zero_where_the_student_says_what_the_teacher_says(name):
    """Cross-entropy and entropy of the same rows: never negative, and 0 for equal predictions and targets."""
    config = tiny_config()
    distillation = SelfDistillationConfig(
        student_temperature=0.1, teacher_temperature=0.1, warmup_teacher_temperature=0.1
    )
    objective = dataclasses.replace(getattr(config.objectives, name), distillation=distillation)
    if name == "selfpatch":  # every patch is its own aggregate only if all patches are alike
        objective = dataclasses.replace(objective, crops="all")
    config = dataclasses.replace(config, objectives=dataclasses.replace(config.objectives, **{name: objective}))
    student_teacher = tiny_student_teacher(config).eval()
    branch = student_teacher.objectives[name].branch
    tokens = torch.randn(50, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        predicted = branch.predict(tokens)
        signals = branch.signals(predicted, branch.targets(branch.project_teacher(tokens), 0))
        _, metrics = student_teacher(Views(*random_crops(config)), 0)
    assert signals["kl"].item() == pytest.approx(0, abs=1e-5)
    assert metrics[f"{name}/kl"] > -1e-5


def test_always_frozen_prototypes_have_no_gradient_and_take_no_part_in_the_clip():
    """10,000 epochs were "always" once: then their gradient was made, and shrank all others through the global clip."""
    config = tiny_config()
    gradients = {}
    for epochs in ("always", 10_000):
        head = dataclasses.replace(config.objectives.dino.head, freeze_prototypes_epochs=epochs)
        objectives = dataclasses.replace(
            config.objectives, dino=dataclasses.replace(config.objectives.dino, head=head), selfpatch=None
        )
        student_teacher = tiny_student_teacher(dataclasses.replace(config, objectives=objectives)).eval()
        loss, _ = student_teacher(Views(*random_crops(config)), 0)
        loss.backward()
        head = student_teacher.objectives["dino"].branch.head
        gradients[epochs] = head.prototypes.weight_v.grad
        assert head.mlp[0].weight.grad.norm() > 0
    assert gradients["always"] is None
    assert gradients[10_000].norm() > 0
