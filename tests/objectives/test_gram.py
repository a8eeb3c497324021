"""Gram anchoring against all pairs one by one; which teacher is the Gram teacher when, saved and gone on with."""

import copy
from dataclasses import replace

import pytest
import torch

from selfpatch.backbones.backbone import Tokens
from selfpatch.config import ObjectivesConfig
from selfpatch.config.objectives.gram import GramConfig
from selfpatch.errors import UserError
from selfpatch.objectives.encoder import Encoded, EncodedViews
from selfpatch.objectives.gram import Gram
from selfpatch.pretraining.student_teacher import StudentTeacher
from selfpatch.pretraining.views import Views
from tests.reference.plain_gram import gram_loss, gram_teacher_steps
from tests.small_models import random_crops, tiny_config, tiny_student_teacher


def views_of(patch_tokens: torch.Tensor) -> EncodedViews:
    crops = Encoded(Tokens(None, patch_tokens, (1, patch_tokens.shape[1])), patch_tokens.mean(dim=1))
    images = torch.zeros(len(patch_tokens), 3, 8, 8)
    return EncodedViews(len(patch_tokens), images, crops, None, None, lambda x: x, None)


def config_of(**settings):
    config = tiny_config()
    return replace(config, objectives=replace(config.objectives, gram=GramConfig(**settings)))


def one_step(student_teacher: StudentTeacher, config, step: int) -> dict[str, torch.Tensor]:
    """Gradient descent, and a teacher that follows; commits."""
    torch.manual_seed(step)
    loss, metrics = student_teacher(Views(*random_crops(config, seed=step)), step)
    loss.backward()
    with torch.no_grad():
        for parameter in student_teacher.parameters():
            if parameter.grad is not None:
                parameter -= 0.1 * parameter.grad
                parameter.grad = None
    student_teacher.commit(0.5)
    return metrics


def gram_of(student_teacher: StudentTeacher) -> Gram:
    gram = student_teacher.objectives["gram"]
    assert isinstance(gram, Gram)
    return gram


def is_copy(gram: Gram, teacher_state: dict[str, torch.Tensor]) -> bool:
    assert gram.gram_teacher is not None
    state = gram.gram_teacher.state_dict()
    return all(torch.equal(state[name], value) for name, value in teacher_state.items())


def test_loss_equals_all_pairs_one_by_one():
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 3, 5, 4, generator=generator)
    loss, signals = Gram(4, GramConfig(), steps_per_epoch=4)(views_of(student), views_of(teacher), 0)
    assert loss.item() == pytest.approx(gram_loss(student.tolist(), teacher.tolist()), rel=1e-5)
    assert signals["teacher_age_steps"] == 0


def test_turning_and_scaling_all_patches_costs_nothing():
    """Similarities alone are kept: features may turn as a whole, and their lengths change."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(2, 6, 8, generator=generator)
    rotation = torch.linalg.qr(torch.randn(8, 8, generator=generator)).Q
    lengths = torch.rand(2, 6, 1, generator=generator) + 0.1
    gram = Gram(8, GramConfig(), steps_per_epoch=4)
    assert gram(views_of(lengths * (tokens @ rotation)), views_of(tokens), 0)[0] < 1e-12
    assert gram(views_of(tokens.roll(1, dims=1)), views_of(tokens), 0)[0] > 0.01


@pytest.mark.parametrize(
    ("copied", "start", "refresh"), [(0, 0, None), (0, 0, 3), (2, 2, 1), (1, 5, 2), (3, 4, 100), (0, 2, None)]
)
def test_the_gram_teacher_is_the_teacher_of_the_right_step(copied, start, refresh):
    """As that step found it, before it moved; and until then there is none."""
    config = config_of(teacher_epoch=copied / 4, start_epoch=start / 4, refresh_steps=refresh)
    student_teacher = tiny_student_teacher(config, steps_per_epoch=4)
    gram = gram_of(student_teacher)
    expected = gram_teacher_steps(9, copied=copied, start=start, refresh=refresh)
    teachers = {}
    for step in range(9):
        teachers[step] = copy.deepcopy(student_teacher.teacher.state_dict())
        metrics = one_step(student_teacher, config, step)
        if expected[step] is None:
            assert gram.gram_teacher is None
        else:
            assert is_copy(gram, teachers[expected[step]])
        assert gram.weight_at(step) == (2.0 if step >= start else 0.0)
        if step >= start:
            assert metrics["gram/teacher_age_steps"] == step - (expected[step] or 0)
            assert metrics["gram/loss"] > 0


def test_the_loss_is_that_of_the_copy_and_not_of_todays_teacher():
    config = config_of(refresh_steps=None)
    student_teacher = tiny_student_teacher(config).eval()
    first = copy.deepcopy(student_teacher.teacher)
    for step in range(3):
        one_step(student_teacher, config, step)
    crops = random_crops(config, seed=9)
    _, metrics = student_teacher(Views(*crops), 3)
    images = crops[0].flatten(0, 1)
    student, anchors = (
        network.norm(network.backbone(images).patch_tokens).tolist() for network in (student_teacher.student, first)
    )
    assert metrics["gram/loss"].item() == pytest.approx(gram_loss(student, anchors), rel=1e-4)


def test_nothing_is_encoded_before_the_start_and_one_network_more_after_it(monkeypatch):
    config = config_of(teacher_epoch=0.25, start_epoch=0.75)
    student_teacher = tiny_student_teacher(config, steps_per_epoch=4)
    calls = []
    backbone = type(student_teacher.student.backbone)
    forward = backbone.forward
    monkeypatch.setattr(backbone, "forward", lambda self, *inputs: calls.append(self) or forward(self, *inputs))
    counts, sizes = [], []
    for step in range(5):
        calls.clear()
        one_step(student_teacher, config, step)
        counts.append(len(calls))
        sizes.append(sum("gram_teacher" in name for name in student_teacher.state_dict()))
    assert counts == [4, 4, 4, 5, 5]  # DINO and SelfPatch: two resolutions each of student and teacher
    assert sizes[0] == 0 and sizes[1] == sizes[4] > 0


def test_a_skipped_step_puts_the_copy_off():
    config = config_of()
    student_teacher = tiny_student_teacher(config)
    student_teacher(Views(*random_crops(config)), 0)
    student_teacher.discard()
    student_teacher.commit(1.0)
    assert gram_of(student_teacher).gram_teacher is None
    one_step(student_teacher, config, 1)
    assert gram_of(student_teacher).get_extra_state() == 1


@pytest.mark.parametrize("stopped_after", range(1, 6))
def test_a_run_that_goes_on_from_its_tensors_ends_bit_equal(stopped_after):
    """Before the copy, between copy and start, at the start, after a refresh."""
    config = config_of(teacher_epoch=0.5, start_epoch=0.75, refresh_steps=2)
    unbroken = tiny_student_teacher(config, steps_per_epoch=4)
    for step in range(stopped_after):
        one_step(unbroken, config, step)
    saved = copy.deepcopy(unbroken.state_dict())
    gone_on = tiny_student_teacher(config, steps_per_epoch=4, seed=1)
    gone_on.load_state_dict(saved)
    for step in range(stopped_after, 7):
        one_step(unbroken, config, step)
        one_step(gone_on, config, step)
    expected, found = unbroken.state_dict(), gone_on.state_dict()
    assert expected.keys() == found.keys()
    assert all(torch.equal(value, found[name]) for name, value in expected.items())


def test_loading_a_checkpoint_from_before_the_copy_forgets_it():
    config = config_of(teacher_epoch=0.5, start_epoch=0.5)
    student_teacher = tiny_student_teacher(config, steps_per_epoch=4)
    before = copy.deepcopy(student_teacher.state_dict())
    for step in range(3):
        one_step(student_teacher, config, step)
    assert gram_of(student_teacher).gram_teacher is not None
    student_teacher.load_state_dict(before)
    assert gram_of(student_teacher).gram_teacher is None
    assert gram_of(student_teacher).get_extra_state() == -1


def test_no_gradient_reaches_the_gram_teacher_and_it_is_not_trained():
    config = config_of()
    student_teacher = tiny_student_teacher(config)
    for step in range(2):
        one_step(student_teacher, config, step)
    loss, _ = student_teacher(Views(*random_crops(config, seed=5)), 2)
    loss.backward()
    gram_teacher = gram_of(student_teacher).gram_teacher
    assert gram_teacher is not None
    parameters = list(gram_teacher.parameters())
    assert parameters and all(p.grad is None and not p.requires_grad for p in parameters)


def test_a_start_before_the_copy_is_refused():
    with pytest.raises(UserError, match=r"objectives.gram.teacher-epoch is 3.*at most start-epoch \(2\)"):
        ObjectivesConfig(gram=GramConfig(teacher_epoch=3, start_epoch=2))
