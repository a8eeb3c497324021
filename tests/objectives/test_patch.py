"""The patch-level objective: every switch against the plain restatement, and known answers."""

import dataclasses

import pytest
import torch

from selfpatch.backbones.backbone import Tokens
from selfpatch.config import ObjectivesConfig, SelfDistillationConfig, SelfPatchConfig
from selfpatch.config.io import read_yaml
from selfpatch.config.masks import MaskConfig
from selfpatch.config.objectives.ibot import IBOTConfig
from selfpatch.config.objectives.patch import PatchConfig
from selfpatch.errors import UserError
from selfpatch.objectives.patch import PatchObjective
from selfpatch.objectives.positives import average_positives, find_positives, neighborhood
from selfpatch.pretraining.masks import draw_masks
from selfpatch.pretraining.student_teacher import StudentTeacher, require_layer
from selfpatch.pretraining.views import Views
from tests.backbones.small_swin import small_swin
from tests.reference.plain_patch import Crop, candidates_of, patch_loss
from tests.small_models import HEAD, random_crops, tiny_config, tiny_student_teacher

MASKS = MaskConfig(ratio=(0.2, 0.5), prob=1.0)
ALL_CROPS = dict(crops="all", visible_weight=1.0)
NEIGHBORS = dict(target="neighbors", visible_weight=1.0)
# Of two crops of two images: one shifted and flipped, one a small part of the other.
BOXES = torch.tensor([[[10.0, 5, 70, 65], [0, 0, 100, 80]], [[90.0, 0, 30, 60], [20, 10, 52, 42]]])


def student_teacher_of(settings: PatchConfig, **objectives) -> StudentTeacher:
    """With `settings` as its objective, and a teacher that is not the student."""
    config = dataclasses.replace(
        tiny_config(), objectives=ObjectivesConfig(**{"dino": None, "ibot": settings} | objectives)
    )
    student_teacher = tiny_student_teacher(config).eval()
    with torch.no_grad():
        for parameter in student_teacher.teacher.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return student_teacher


def views_of(student_teacher: StudentTeacher, *, batch_size: int = 2) -> Views:
    """Random crops of 4 x 4 patches, masked if the objectives need it, and local ones of 3 x 3."""
    masks = None
    if student_teacher.masks:
        masks = draw_masks(student_teacher.masks, range(batch_size), seed=0, step=0, num_crops=2, grid_size=(4, 4))
    global_crops, local_crops = random_crops(tiny_config(), batch_size=batch_size)
    recolored = global_crops + 0.3 * torch.randn(global_crops.shape, generator=torch.Generator().manual_seed(5))
    return Views(global_crops, local_crops, masks, recolored, BOXES[:, :batch_size])


def encoded(student_teacher: StudentTeacher, views: Views):
    """What a step gives to the objective: student's and teacher's views."""
    seen = []
    with student_teacher.objectives["ibot"].register_forward_pre_hook(lambda module, inputs: seen.extend(inputs[:2])):
        student_teacher(views, 0)
    student_teacher.discard()
    return seen


SWITCHES = {
    "iBOT": {},
    "iBOT, random masks": dict(masks=MaskConfig(kind="random", ratio=(0.2, 0.5), prob=0.5)),
    "iBOT++": dict(visible_weight=1.0),
    "visible patches alone": dict(masked_weight=0.0, visible_weight=1.0),
    "visible patches weigh less": dict(masked_weight=1.0, visible_weight=0.25),
    "no masks": dict(masks=None, visible_weight=1.0),
    "all crops": ALL_CROPS,
    "masks on all crops": ALL_CROPS | dict(masked_weight=3.0),
    "masked SelfPatch": NEIGHBORS | dict(visible_weight=0.0),
    "neighbors, mean": NEIGHBORS | dict(aggregation="mean", num_positives=3, padding_mode="none"),
    "neighbors, weighted mean": NEIGHBORS | dict(aggregation="similarity_weighted_mean"),
    "neighbors, nearest": NEIGHBORS | dict(aggregation="nearest"),
    "neighbors in the image": NEIGHBORS | dict(window_size="image", num_positives=5),
    "the same crop recolored": dict(masks=None, visible_weight=1.0, view="recolored"),
    "masked SelfPatch on the recolored crop": NEIGHBORS | dict(view="recolored"),
    "the other crop": dict(masks=None, visible_weight=1.0, view="other"),
    "iBOT on the other crop": dict(view="other"),
    "neighbors in the other crop": NEIGHBORS | dict(view="other", aggregation="mean", num_positives=3),
    "neighbors by the first block": NEIGHBORS | dict(layer=0),
    "neighbors by the last block, of all crops": NEIGHBORS | ALL_CROPS | dict(layer=-1, masks=None),
    "mean in the image of all crops": NEIGHBORS | ALL_CROPS | dict(window_size="image", aggregation="mean"),
}


@pytest.mark.parametrize("switches", SWITCHES)
def test_loss_and_next_center_equal_the_plain_restatement(switches):
    settings = IBOTConfig(**dict(head=HEAD, distillation=SelfDistillationConfig(), masks=MASKS) | SWITCHES[switches])
    student_teacher = student_teacher_of(settings)
    objective = student_teacher.objectives["ibot"]
    center = objective.branch.distillation.center.normal_(std=0.05).clone()
    views = views_of(student_teacher)
    with torch.no_grad():
        student, teacher = encoded(student_teacher, views)
        loss, _ = objective(student, teacher, 0)
        resolutions = list(zip(student.by_resolution, teacher.by_resolution, strict=False))
        crops = [
            Crop(
                s, t, seen.tokens.grid_size,
                mask=student.masks[i] if resolution == 0 and student.masks is not None else None,
                searched=None if settings.layer is None else by_teacher.layers[settings.layer][i],
                box=BOXES.flatten(0, 1)[i].tolist() if resolution == 0 else None,
            )
            for resolution, (seen, by_teacher) in enumerate(resolutions)
            if resolution == 0 or settings.crops == "all"
            for i, (s, t) in enumerate(zip(seen.tokens.patch_tokens, by_teacher.tokens.patch_tokens, strict=True))
        ]  # fmt: skip
        expected, mean_logit = patch_loss(
            crops,
            student=(student_teacher.student.aggregator, objective.branch.head),
            teacher=(student_teacher.teacher.aggregator, objective.branch.teacher_head),
            center=center,
            config=settings,
            num_images=views.num_images,
        )
        seen_by_teacher = views.recolored_crops if settings.view == "recolored" else views.global_crops
        by_hand = student_teacher.teacher.backbone(seen_by_teacher.flatten(0, 1)).patch_tokens
    torch.testing.assert_close(teacher.global_crops.tokens.patch_tokens, by_hand)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
    objective.commit()
    torch.testing.assert_close(
        objective.branch.distillation.center, 0.9 * center + 0.1 * mean_logit, rtol=1e-5, atol=1e-6
    )


def test_of_identical_networks_the_cross_entropy_is_the_entropy_of_the_targets():
    distillation = SelfDistillationConfig(student_temperature=0.2, teacher_temperature=0.2)
    settings = IBOTConfig(head=HEAD, masks=None, visible_weight=1.0, distillation=distillation)
    config = dataclasses.replace(tiny_config(), objectives=ObjectivesConfig(dino=None, ibot=settings))
    student_teacher = tiny_student_teacher(config).eval()
    student, teacher = encoded(student_teacher, views_of(student_teacher))
    objective = student_teacher.objectives["ibot"]
    loss, signals = objective(student, teacher, 0)
    tokens = student_teacher.student.aggregator.norm(student.global_crops.tokens.patch_tokens)
    probabilities = (objective.branch.head(tokens) / 0.2).softmax(dim=-1)
    entropy = -(probabilities * probabilities.log()).sum(dim=-1).mean()
    torch.testing.assert_close(loss, entropy, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(signals["kl"], torch.zeros(()), rtol=0, atol=1e-5)


@pytest.mark.parametrize("masked_weight", [0.0, 7.0])
def test_without_masks_the_weight_of_masked_patches_is_nothing(masked_weight):
    student_teacher = student_teacher_of(IBOTConfig(head=HEAD, masks=None, visible_weight=1.0))
    student, teacher = encoded(student_teacher, views_of(student_teacher))
    objective = student_teacher.objectives["ibot"]
    plain, _ = objective(student, teacher, 0)
    objective.config = dataclasses.replace(objective.config, masked_weight=masked_weight)
    loss, _ = objective(student, teacher, 0)
    assert torch.equal(loss, plain)


@pytest.mark.parametrize("num_masked", [0, 1, 2])
def test_few_masked_patches_are_enough_even_for_batch_norm(num_masked):
    head = dataclasses.replace(HEAD, batch_norm=True)
    student_teacher = student_teacher_of(IBOTConfig(head=head, masks=MASKS)).train()
    views = views_of(student_teacher)
    masks = torch.zeros_like(views.masks)
    masks[0, 0, :num_masked] = True
    loss, signals = student_teacher(views._replace(masks=masks), 0)
    loss.backward()
    assert loss > 0 if num_masked else loss == 0
    assert all(torch.isfinite(value) for value in signals.values())
    assert signals["ibot/masked_fraction"] == num_masked / masks.numel()
    assert all(
        p.grad is not None for p in student_teacher.objectives["ibot"].branch.head.parameters() if p.requires_grad
    )


def test_a_visible_patch_does_not_count_in_ibot_and_a_masked_one_does():
    student_teacher = student_teacher_of(IBOTConfig(head=HEAD, masks=MASKS))
    student, teacher = encoded(student_teacher, views_of(student_teacher))
    tokens = student.global_crops.tokens.patch_tokens.detach().requires_grad_()
    changed = student.global_crops._replace(tokens=student.global_crops.tokens._replace(patch_tokens=tokens))
    loss, _ = student_teacher.objectives["ibot"](student._replace(global_crops=changed), teacher, 0)
    loss.backward()
    assert torch.equal(tokens.grad.abs().sum(dim=-1) > 0, student.masks)


def test_gradients_reach_the_mask_token_and_no_teacher():
    student_teacher = student_teacher_of(IBOTConfig(head=HEAD, masks=MASKS)).train()
    token = student_teacher.student.backbone.mask_token
    assert token.shape == student_teacher.teacher.backbone.mask_token.shape
    loss, _ = student_teacher(views_of(student_teacher), 0)
    loss.backward()
    assert token.grad.abs().sum() > 0
    assert all(p.grad is None for _, teacher in student_teacher.ema_pairs() for p in teacher.parameters())
    student_teacher.commit(0.5)
    pairs = [(dict(s.named_parameters()), dict(t.named_parameters())) for s, t in student_teacher.ema_pairs()]
    assert all(s.keys() == t.keys() for s, t in pairs), "a moving average pairs parameters by their order"


def test_without_masks_no_mask_token_is_made():
    student_teacher = student_teacher_of(IBOTConfig(head=HEAD, masks=None, visible_weight=1.0))
    assert student_teacher.masks is None
    assert not any("mask_token" in name for name in student_teacher.state_dict())


def test_before_its_start_an_objective_has_neither_weight_nor_masks_and_then_it_rises():
    settings = IBOTConfig(
        head=HEAD, masks=MASKS, visible_weight=1.0, weight=2.0, start_epoch=1.5, ramp_epochs=1.0,
        distillation=SelfDistillationConfig(teacher_temperature=0.08, warmup_epochs=3),
    )  # fmt: skip
    student_teacher = student_teacher_of(settings)  # four steps an epoch
    objective = student_teacher.objectives["ibot"]
    assert [objective.weight_at(step) for step in (0, 5, 6, 7, 8, 9, 10, 99)] == [0, 0, 0.5, 1, 1.5, 2, 2, 2]
    assert [student_teacher.masks_at(step) for step in (0, 5, 6, 99)] == [None, None, MASKS, MASKS]

    for step, weight in ((5, 0.0), (6, 0.5), (10, 2.0)):
        loss, metrics = student_teacher(views_of(student_teacher), step)
        torch.testing.assert_close(loss, weight * metrics["ibot/loss"])
        assert metrics["ibot/loss"] > 0
    # The warm-up of the temperature (0.04, 0.06, 0.08 an epoch) counts from the start.
    student, teacher = encoded(student_teacher, views_of(student_teacher))
    from_step_6, _ = objective(student, teacher, 6 + 4)
    objective._start_step = 0
    from_step_0, _ = objective(student, teacher, 4)
    assert torch.equal(from_step_0, from_step_6)


@pytest.mark.parametrize("box", [[0.0, 0, 9, 9], [9.0, 0, 0, 9]])
def test_another_crop_with_the_same_edges_is_the_same_view(box):
    """The same pixels twice: the other view is the own one, whatever the flip that both have."""
    student_teacher = student_teacher_of(IBOTConfig(head=HEAD, masks=None, visible_weight=1.0, view="other"))
    views = views_of(student_teacher)
    views = views._replace(
        global_crops=views.global_crops[:1].expand(2, -1, -1, -1, -1), global_boxes=torch.tensor(box).expand(2, 2, 4)
    )
    student, teacher = encoded(student_teacher, views)
    objective = student_teacher.objectives["ibot"]
    other, signals = objective(student, teacher, 0)
    objective.config = dataclasses.replace(objective.config, view="same")
    same, _ = objective(student, teacher, 0)
    torch.testing.assert_close(other, same, rtol=1e-5, atol=1e-6)
    assert signals["shown_fraction"] == 1


def test_crops_that_do_not_overlap_make_no_loss():
    student_teacher = student_teacher_of(IBOTConfig(head=HEAD, masks=None, visible_weight=1.0, view="other"))
    views = views_of(student_teacher)._replace(
        global_boxes=torch.tensor([[[0.0, 0, 9, 9]] * 2, [[20.0, 0, 29, 9]] * 2])
    )
    loss, signals = student_teacher(views, 0)
    loss.backward()
    assert loss == 0 and signals["ibot/shown_fraction"] == 0
    assert all(p.grad is None or not p.grad.any() for p in student_teacher.student.parameters())


@pytest.mark.parametrize("layer", [2, -3])
def test_a_layer_that_the_backbone_does_not_have_is_refused(layer):
    settings = IBOTConfig(**NEIGHBORS, head=HEAD, layer=layer)
    with pytest.raises(UserError, match=f"objectives.ibot.layer is {layer}; of the 2 stages .* 0, 1 have patches"):
        student_teacher_of(settings)


def test_of_a_hierarchical_network_the_last_stage_is_allowed():
    require_layer(small_swin(), -1, "layer")
    with pytest.raises(UserError, match="of the 2 stages .* 1 have patches"):
        require_layer(small_swin(), 0, "layer")


def test_the_window_image_finds_the_nearest_of_all_patches():
    tokens = torch.randn(1, 20, 6, generator=torch.Generator().manual_seed(0))
    tokens[0, 17] = 2 * tokens[0, 0]  # the far corner, alike but for its length
    positives, similarity = find_positives(
        Tokens(None, tokens, (4, 5)), PatchConfig(window_size="image", num_positives=1)
    )
    assert positives[0, 0].item() == 17 and positives[0, 17].item() == 0
    assert similarity[0, 0].item() == pytest.approx(1)
    cosine = torch.nn.functional.cosine_similarity(tokens[0, :, None], tokens[0, None], dim=-1)
    assert torch.equal(positives[0, :, 0], cosine.fill_diagonal_(-2).argmax(dim=-1))


@pytest.mark.parametrize("window", [3, 5, 7, "image"])
@pytest.mark.parametrize("padding_mode", ["circular", "none"])
def test_neighborhoods_of_every_size(window, padding_mode):
    indices, valid = neighborhood((7, 8), window, padding_mode)
    for patch in range(56):
        assert sorted(indices[patch][valid[patch]].tolist()) == sorted(candidates_of(patch, 7, 8, window, padding_mode))


def test_means_of_positives_by_hand():
    tokens = torch.tensor([[[1.0, 0.0], [0.0, 2.0], [4.0, 4.0]]])
    positives = torch.tensor([[[1, 2], [2, 0], [0, 1]]])
    similarity = torch.tensor([[[0.3, 0.2], [0.5, 0.5], [0.9, -0.9]]])
    mean = average_positives(tokens, positives, similarity, "mean")
    torch.testing.assert_close(mean, torch.tensor([[[2.0, 3.0], [2.5, 2.0], [0.5, 1.0]]]))
    weighted = average_positives(tokens, positives, similarity, "similarity_weighted_mean")
    e = torch.e  # the first is 0.1 more similar than the second
    expected = [[4 / (1 + e), (2 * e + 4) / (1 + e)], [2.5, 2.0], [1.0, 0.0]]
    torch.testing.assert_close(weighted, torch.tensor([expected]), rtol=1e-5, atol=1e-5)
    nearest, found = find_positives(
        Tokens(None, tokens, (1, 3)), PatchConfig(window_size="image", aggregation="nearest")
    )
    assert nearest.tolist() == [[[2], [2], [0]]], "as the cosines are 0, 0.71 and 0.71"
    assert average_positives(tokens, nearest, found, "nearest").tolist() == [[[4, 4], [4, 4], [1, 0]]]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (dict(window_size=4), "window-size is 4; it must be an odd number"),
        (dict(window_size=5, num_positives=25), "24 neighbors"),
        (dict(masked_weight=0.0, visible_weight=0.0), "no patch counts"),
        (dict(masks=None), "visible-weight is 0.0; .*nothing is masked"),
        (dict(crops="all"), "local crops are never masked"),
        (dict(start_epoch=-1), "start-epoch is -1"),
        (dict(ALL_CROPS, view="other"), "view is 'other'; local crops have no second view"),
        (dict(ALL_CROPS, view="recolored"), "choose crops 'global'"),
        (dict(layer=3), "layer is 3; with target 'self' no neighbors are sought"),
    ],
)
def test_settings_that_make_no_loss(settings, words):
    with pytest.raises(UserError, match=words):
        IBOTConfig(**settings)


@pytest.mark.parametrize(
    ("objectives", "words"),
    [
        (dict(dino=None, ibot=IBOTConfig()), "objectives.ibot.head is None: .*objectives.dino"),
        (
            dict(ibot=IBOTConfig(), selfpatch=SelfPatchConfig(crops="global", view="recolored")),
            "objectives.ibot.view is same and objectives.selfpatch.view is recolored",
        ),
        (
            dict(ibot=IBOTConfig(), selfpatch=SelfPatchConfig(masks=MaskConfig(prob=1.0))),
            "objectives.selfpatch.masks and objectives.ibot.masks differ",
        ),
    ],
)
def test_objectives_that_do_not_go_together(objectives, words):
    with pytest.raises(UserError, match=words):
        ObjectivesConfig(**objectives)


def test_masked_selfpatch_is_a_line_of_a_settings_file(tmp_path):
    """The example of docs/methods.md."""
    (tmp_path / "config.yaml").write_text(
        "objectives:\n"
        "  dino: {}\n"
        "  selfpatch: {masks: {kind: block, prob: 0.5}, visible_weight: 0.5, aggregation: similarity_weighted_mean}\n"
    )
    config = read_yaml(tmp_path / "config.yaml")
    assert config.aggregator is None
    assert config.objectives.selfpatch == SelfPatchConfig(
        masks=MaskConfig(), visible_weight=0.5, aggregation="similarity_weighted_mean"
    )


def test_more_positives_than_patches_are_refused():
    settings = PatchConfig(head=HEAD, target="neighbors", window_size="image", num_positives=9)
    objective = PatchObjective(8, settings, steps_per_epoch=1)
    objective.check_grid(2, 5)
    with pytest.raises(UserError, match="3 x 3 patches has 8 neighbors for each, fewer than the 9 positives"):
        objective.check_grid(3, 3)
    PatchObjective(8, dataclasses.replace(settings, target="self"), steps_per_epoch=1).check_grid(1, 1)
