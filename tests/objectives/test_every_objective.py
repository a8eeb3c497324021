"""One body over all terms, alone and with SelfPatch, on every family of backbones."""

import copy

import pytest
import torch

from selfpatch.config import AggregatorConfig, DINOConfig, ObjectivesConfig, SelfPatchConfig
from selfpatch.objectives.encoder import Encoder
from selfpatch.objectives.registry import build_objectives
from selfpatch.pretraining.student_teacher import StudentTeacher
from selfpatch.pretraining.views import Views
from tests.backbones.small_vits import FAMILIES, small_vit
from tests.small_models import HEAD

DINO, SELFPATCH = DINOConfig(head=HEAD), SelfPatchConfig(head=HEAD)
METHODS = {
    "dino": ObjectivesConfig(dino=DINO),
    "selfpatch": ObjectivesConfig(dino=None, selfpatch=SELFPATCH),
    "dino + selfpatch": ObjectivesConfig(dino=DINO, selfpatch=SELFPATCH),
}


def build(family: str, method: str, image_token: str) -> tuple[StudentTeacher, tuple[torch.Tensor, torch.Tensor]]:
    backbone = small_vit(family)
    aggregator = AggregatorConfig(num_blocks=1, image_token=image_token)
    objectives = build_objectives(METHODS[method], backbone.embed_dim, steps_per_epoch=4)
    rows, columns = backbone.patch_size
    generator = torch.Generator().manual_seed(0)
    global_crops = torch.randn(2, 3, 3, 4 * rows, 5 * columns, generator=generator)
    local_crops = torch.randn(2, 3, 3, 3 * rows, 3 * columns, generator=generator)
    return StudentTeacher(Encoder(backbone, aggregator), objectives).train(), (global_crops, local_crops)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", FAMILIES)
def test_finite_on_non_square_crops_with_gradients_for_the_student_alone(family, method):
    student_teacher, crops = build(family, method, "aggregator")
    loss, metrics = student_teacher(Views(*crops), 0)
    assert loss.shape == ()
    assert all(torch.isfinite(value) for value in metrics.values())
    weights = {"dino": 1.0, "selfpatch": 0.1}
    expected = sum(
        weights[name] * metrics[f"{name}/loss"] for name in METHODS[method].__dict__ if f"{name}/loss" in metrics
    )
    torch.testing.assert_close(loss.detach(), expected)
    loss.backward()
    trained = [p for p in student_teacher.parameters() if p.requires_grad]
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in trained)
    assert all(p.grad is None for _, teacher in student_teacher.ema_pairs() for p in teacher.parameters())


@pytest.mark.parametrize("family", [name for name in FAMILIES if not name.startswith("no ") and "mixed" not in name])
def test_the_class_token_serves_as_image_token_where_there_is_one(family):
    if not small_vit(family).has_cls_token:
        pytest.skip(f"{family} has no class token")
    student_teacher, crops = build(family, "dino + selfpatch", "class_token")
    tokens, image_token = student_teacher.eval().student(crops[0].flatten(0, 1))
    assert torch.equal(image_token, tokens.cls_token)
    loss, _ = student_teacher(Views(*crops), 0)
    assert torch.isfinite(loss)


@pytest.mark.parametrize("method", METHODS)
def test_the_loss_does_not_know_the_order_of_images(method):
    student_teacher, crops = build("no class token", method, "aggregator")
    order = torch.tensor([2, 0, 1])
    with torch.no_grad():
        loss, _ = copy.deepcopy(student_teacher)(Views(*crops), 0)
        shuffled, _ = student_teacher(Views(*(crop[:, order] for crop in crops)), 0)
    torch.testing.assert_close(loss, shuffled)


def test_a_single_image_is_enough():
    student_teacher, crops = build("class token", "dino + selfpatch", "aggregator")
    loss, _ = student_teacher(Views(*(crop[:, :1] for crop in crops)), 0)
    assert torch.isfinite(loss)


ASKED_FOR = {  # (student, teacher): how many sizes of crops each network encodes
    "DINO": (ObjectivesConfig(dino=DINO), (2, 1)),
    "DINO, centre of all crops": (ObjectivesConfig(dino=DINOConfig(head=HEAD, center_crops="all")), (2, 2)),
    "SelfPatch": (ObjectivesConfig(dino=None, selfpatch=SELFPATCH), (2, 2)),
    "SelfPatch on global crops": (
        ObjectivesConfig(dino=None, selfpatch=SelfPatchConfig(head=HEAD, crops="global")), (1, 1)
    ),
    "both": (ObjectivesConfig(dino=DINO, selfpatch=SelfPatchConfig(head=HEAD, crops="global")), (2, 1)),
}  # fmt: skip


@pytest.mark.parametrize("case", ASKED_FOR)
def test_nothing_is_encoded_that_no_term_asked_for(case):
    objectives, expected = ASKED_FOR[case]
    student_teacher, crops = build("no class token", "dino", "aggregator")
    encoder = student_teacher.student
    student_teacher = StudentTeacher(
        encoder, build_objectives(objectives, encoder.backbone.embed_dim, steps_per_epoch=4)
    )
    calls = {"student": 0, "teacher": 0}
    for name in calls:
        getattr(student_teacher, name).backbone.register_forward_hook(
            lambda *_, name=name: calls.__setitem__(name, calls[name] + 1)
        )
    student_teacher(Views(*crops), 0)
    assert (calls["student"], calls["teacher"]) == expected
