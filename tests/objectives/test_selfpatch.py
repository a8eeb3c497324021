"""SelfPatch's term: against the plain restatement, and properties of positives."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from selfpatch.backbones.backbone import Tokens
from selfpatch.config import SelfPatchConfig
from selfpatch.objectives.encoder import Encoder
from selfpatch.objectives.selfpatch import find_positives, match_positives, neighborhood
from selfpatch.pretraining.views import Views
from tests.reference.plain_selfpatch import positives_of, selfpatch_loss
from tests.small_models import HEAD, random_crops, tiny_config, tiny_student_teacher


@pytest.mark.parametrize(
    ("padding_mode", "window_size", "num_positives", "crops"),
    [("circular", 3, 4, "all"), ("none", 3, 3, "all"), ("circular", 3, 8, "global"), ("none", 3, 2, "global")],
)
def test_loss_and_next_centre_equal_the_plain_restatement(padding_mode, window_size, num_positives, crops):
    config = tiny_config()
    settings = SelfPatchConfig(
        head=HEAD, padding_mode=padding_mode, window_size=window_size, num_positives=num_positives, crops=crops
    )
    objectives = dataclasses.replace(config.objectives, selfpatch=settings)
    config = dataclasses.replace(config, objectives=objectives)
    student_teacher = tiny_student_teacher(config).eval()
    with torch.no_grad():  # a teacher that is not the student
        for parameter in student_teacher.teacher.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    term = student_teacher.objectives["selfpatch"]
    term.branch.distillation.center.normal_(std=0.05)
    global_crops, local_crops = random_crops(config, batch_size=2)
    with torch.no_grad():
        student = student_teacher.student.encode(global_crops, local_crops)
        teacher = student_teacher.teacher.encode(global_crops, local_crops)
        loss, _ = term(student, teacher, 0)

        used = 1 if crops == "global" else 2
        by_crop = [
            [list(c.tokens.patch_tokens.unflatten(0, (-1, 2))) for c in views.by_resolution[:used]]
            for views in (student, teacher)
        ]
        student_crops, teacher_crops = ([crop for size in sizes for crop in size] for sizes in by_crop)
        encoded = [crops.tokens for crops in student.by_resolution[:used]]
        grids = [t.grid_size for t in encoded for _ in range(len(t.patch_tokens) // 2)]
        expected, mean_logit = selfpatch_loss(
            student_crops,
            teacher_crops,
            grids,
            student=(student_teacher.student.aggregator, term.branch.head),
            teacher=(student_teacher.teacher.aggregator, term.branch.teacher_head),
            center=term.branch.distillation.center,
            config=settings,
        )
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-6)

    before = term.branch.distillation.center.clone()
    term.commit()
    torch.testing.assert_close(term.branch.distillation.center, 0.9 * before + 0.1 * mean_logit, rtol=1e-5, atol=1e-6)


@given(
    rows=st.integers(3, 7),
    columns=st.integers(3, 7),
    padding_mode=st.sampled_from(["circular", "none"]),
    seed=st.integers(0, 9),
)
@settings(max_examples=25, deadline=None)
def test_positives_are_the_most_similar_neighbours_at_any_grid(rows, columns, padding_mode, seed):
    tokens = torch.randn(2, rows * columns, 5, generator=torch.Generator().manual_seed(seed))
    config = SelfPatchConfig(padding_mode=padding_mode, num_positives=3)
    positives, similarity = find_positives(Tokens(None, tokens, (rows, columns)), config)
    for image in range(2):
        assert positives[image].tolist() == positives_of(tokens[image], rows, columns, 3, padding_mode, 3)
    assert (similarity.diff(dim=-1) <= 0).all()


def test_clip_never_leaves_the_image_and_wrap_does():
    corner, exists = neighborhood((4, 5), 3, "none")
    assert set(corner[0][exists[0]].tolist()) == {1, 5, 6}
    corner, exists = neighborhood((4, 5), 3, "circular")
    assert exists.all()
    assert set(corner[0].tolist()) == {19, 15, 16, 4, 1, 9, 5, 6}


def test_match_is_equivariant_to_scale_but_not_fooled_by_length():
    tokens = torch.randn(1, 9, 4)
    neighbors, exists = neighborhood((3, 3), 3, "circular")
    lengths = torch.rand(1, 9, 1) * 10 + 0.1
    a, _ = match_positives(tokens, neighbors, exists, 4)
    b, _ = match_positives(tokens * lengths, neighbors, exists, 4)
    assert torch.equal(a, b)


def test_no_gradient_reaches_the_teacher_and_the_student_gets_one():
    config = tiny_config()
    student_teacher = tiny_student_teacher(config)
    loss, _ = student_teacher(Views(*random_crops(config)), 0)
    loss.backward()
    assert all(p.grad is None for p in student_teacher.teacher.parameters())
    assert all(p.grad is None for o in student_teacher.objectives.values() for p in o.branch.teacher_head.parameters())
    missing = [n for n, p in student_teacher.named_parameters() if p.requires_grad and p.grad is None]
    assert not missing


@pytest.mark.parametrize("crops", ["all", "global"])
def test_the_teacher_sees_local_crops_only_when_asked(crops, monkeypatch):
    config = tiny_config()
    objectives = dataclasses.replace(
        config.objectives,
        dino=dataclasses.replace(config.objectives.dino, center_crops="global"),
        selfpatch=dataclasses.replace(config.objectives.selfpatch, crops=crops),
    )
    config = dataclasses.replace(config, objectives=objectives)
    student_teacher = tiny_student_teacher(config)
    seen = []
    backbone = student_teacher.teacher.backbone
    monkeypatch.setattr(backbone, "forward", lambda x, masks=None, f=backbone.forward: seen.append(x.shape[-1]) or f(x))
    student_teacher(Views(*random_crops(config)), 0)
    assert seen == ([32, 24] if crops == "all" else [32])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (dict(window_size=4), "odd"),
        (dict(num_positives=9), "8 neighbors"),
        (dict(num_positives=4, padding_mode="none"), "3 neighbors"),
    ],
)
def test_settings_out_of_range(settings, words):
    with pytest.raises(ValueError, match=words):
        SelfPatchConfig(**settings)


def test_a_grid_smaller_than_the_window_is_refused():
    with pytest.raises(ValueError, match="2 x 4 patches is smaller than the window of 3 x 3"):
        neighborhood((2, 4), 3, "circular")


def test_an_encoder_without_any_image_token_is_refused():
    config = tiny_config()
    with pytest.raises(ValueError, match="no class token"):
        Encoder(tiny_student_teacher(config).student.backbone, None)


def test_positives_are_chosen_in_float32_under_autocast():
    generator = torch.Generator().manual_seed(0)
    tokens = 10 + torch.randn(2, 49, 16, generator=generator)  # alike, as neighbours are
    neighbors, exists = neighborhood((7, 7), 3, "circular")
    plain, _ = match_positives(tokens, neighbors, exists, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under_autocast, similarity = match_positives(tokens, neighbors, exists, 4)
    assert similarity.dtype == torch.float32
    assert torch.equal(plain, under_autocast)
