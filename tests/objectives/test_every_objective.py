"""One body over all objectives, alone, with SelfPatch and with iBOT, on every family of backbones."""

import copy
import dataclasses
import inspect
import itertools

import pytest
import torch

from selfpatch.config import AggregatorConfig, ObjectivesConfig
from selfpatch.config.masks import MaskConfig
from selfpatch.config.objectives.objective import ObjectiveConfig
from selfpatch.objectives.encoder import Encoder
from selfpatch.objectives.objective import Objective
from selfpatch.objectives.registry import OBJECTIVES, build_objectives
from selfpatch.pretraining.masks import draw_masks
from selfpatch.pretraining.student_teacher import StudentTeacher
from selfpatch.pretraining.views import Views
from tests.backbones.small_vits import FAMILIES, small_vit
from tests.small_models import HEAD

# Of every crop, so that a batch has masked patches.
MASKS = MaskConfig(ratio=(0.3, 0.5), prob=1.0)


def small(name: str, **changes) -> ObjectiveConfig:
    """The objective's config with a small head and layers, if it has them, and masks, if it needs them."""
    objective = inspect.signature(OBJECTIVES[name].__init__).parameters["config"].annotation()
    head = {"head": HEAD} if hasattr(objective, "head") else {}
    masks = {"masks": MASKS} if getattr(objective, "masks", None) else {}
    layers = {"hidden_dim": 32, "output_dim": 16} if hasattr(objective, "output_dim") else {}
    overlap = {"overlap_size": 3} if hasattr(objective, "overlap_size") else {}
    queue = {"queue_size": 12} if hasattr(objective, "queue_size") else {}
    return dataclasses.replace(objective, **head | masks | layers | overlap | queue | changes)


def objectives_of(*names: str) -> ObjectivesConfig:
    return ObjectivesConfig(**{name: small(name) if name in names else None for name in OBJECTIVES})


METHODS = {name: objectives_of(name) for name in OBJECTIVES} | {
    f"{name} + selfpatch": objectives_of(name, "selfpatch") for name in OBJECTIVES if name != "selfpatch"
}
METHODS["dino + ibot, one head"] = ObjectivesConfig(dino=small("dino"), ibot=small("ibot", head=None))
METHODS["dino + ibot + selfpatch"] = objectives_of("dino", "ibot", "selfpatch")
METHODS["dino + ibot on the other crop"] = ObjectivesConfig(dino=small("dino"), ibot=small("ibot", view="other"))
METHODS["dino + ibot on the recolored crop"] = ObjectivesConfig(
    dino=small("dino"), ibot=small("ibot", view="recolored")
)
METHODS["dino + selfpatch by another layer"] = ObjectivesConfig(
    dino=small("dino"), selfpatch=small("selfpatch", layer=-1)
)


def test_every_objective_of_the_config_is_known():
    assert list(OBJECTIVES) == [field.name for field in dataclasses.fields(ObjectivesConfig)]
    assert all(issubclass(objective, Objective) for objective in OBJECTIVES.values())


def build(family: str, method: str, image_token: str) -> tuple[StudentTeacher, Views]:
    """Of three images: 4 x 5 patches a global crop, masked if an objective needs it, and 3 x 3 a local one."""
    backbone = small_vit(family)
    aggregator = AggregatorConfig(num_blocks=1, image_token=image_token)
    objectives = build_objectives(METHODS[method], backbone.embed_dim, steps_per_epoch=4)
    rows, columns = backbone.patch_size
    generator = torch.Generator().manual_seed(0)
    global_crops = torch.randn(2, 3, 3, 4 * rows, 5 * columns, generator=generator)
    local_crops = torch.randn(2, 3, 3, 3 * rows, 3 * columns, generator=generator)
    student_teacher = StudentTeacher(Encoder(backbone, aggregator), objectives).train()
    for parameter in student_teacher.teacher.parameters():  # as some steps later: what only compares the two has work
        parameter.data += 0.01 * torch.randn(parameter.shape, generator=generator)
    views = Views(global_crops, local_crops, masks_of(student_teacher))
    return student_teacher, views._replace(
        recolored_crops=1.1 * global_crops, global_boxes=boxes(generator), local_boxes=boxes(generator)
    )


def boxes(generator: torch.Generator) -> torch.Tensor:
    """Of two crops of three images, some of them flipped; all hold the middle of the image."""
    corners = torch.rand(2, 3, 4, generator=generator) * 40 + torch.tensor([0.0, 0, 60, 60])
    flipped = torch.rand(2, 3, 1, generator=generator) < 0.5
    return torch.where(flipped, corners[..., [2, 1, 0, 3]], corners)


def masks_of(student_teacher: StudentTeacher) -> torch.Tensor | None:
    if student_teacher.masks is None:
        return None
    return draw_masks(student_teacher.masks, range(3), seed=0, step=0, num_crops=2, grid_size=(4, 5))


def of_images(views: Views, images: torch.Tensor) -> Views:
    return Views(*(None if part is None else part[:, images] for part in views))


def has_gradient(module: torch.nn.Module) -> bool:
    return any(p.grad is not None and p.grad.abs().sum() > 0 for p in module.parameters())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", FAMILIES)
def test_finite_on_non_square_crops_with_gradients_for_every_part_of_the_student_alone(family, method):
    student_teacher, views = build(family, method, "aggregator")
    loss, metrics = student_teacher(views, 0)
    assert loss.shape == ()
    assert all(torch.isfinite(value) for value in metrics.values())
    expected = sum(config.weight * metrics[f"{name}/loss"] for name, config in METHODS[method].given().items())
    torch.testing.assert_close(loss.detach(), expected)
    loss.backward()
    assert has_gradient(student_teacher.student.backbone)
    if student_teacher.masks is not None:
        assert student_teacher.student.backbone.mask_token.grad.abs().sum() > 0
    objectives = student_teacher.named_objectives
    if any(objective.needs.image_token for objective in objectives.values()):
        assert has_gradient(student_teacher.student.aggregator)
    for student, teacher in itertools.chain.from_iterable(objective.ema_pairs() for objective in objectives.values()):
        assert all(p.grad is not None for p in student.parameters() if p.requires_grad)
        assert not any(p.requires_grad for p in teacher.parameters())
    assert all(p.grad is None for _, teacher in student_teacher.ema_pairs() for p in teacher.parameters())


@pytest.mark.parametrize("method", METHODS)
def test_nothing_changes_before_commit_and_nothing_stays_after_discard(method):
    student_teacher, views = build("class token", method, "aggregator")
    before = copy.deepcopy(student_teacher.state_dict())
    with torch.no_grad():
        student_teacher(views, 0)
    student_teacher.discard()
    student_teacher.commit(1.0)  # the teacher keeps all of itself
    assert all(torch.equal(before[name], value) for name, value in student_teacher.state_dict().items())


@pytest.mark.parametrize("family", [name for name in FAMILIES if not name.startswith("no ") and "mixed" not in name])
def test_the_class_token_serves_as_image_token_where_there_is_one(family):
    if not small_vit(family).has_cls_token:
        pytest.skip(f"{family} has no class token")
    student_teacher, views = build(family, "dino + selfpatch", "class_token")
    encoded = student_teacher.eval().student(views.global_crops.flatten(0, 1))
    assert torch.equal(encoded.image_token, encoded.tokens.cls_token)
    loss, _ = student_teacher(views, 0)
    assert torch.isfinite(loss)


@pytest.mark.parametrize("method", METHODS)
def test_the_loss_does_not_know_the_order_of_images(method):
    if "neco" in method:
        pytest.skip("its reference patches are drawn from the batch at random")
    student_teacher, views = build("no class token", method, "aggregator")
    order = torch.tensor([2, 0, 1])
    with torch.no_grad():
        loss, _ = copy.deepcopy(student_teacher)(views, 0)
        shuffled, _ = student_teacher(of_images(views, order), 0)
    torch.testing.assert_close(loss, shuffled)


@pytest.mark.parametrize("method", METHODS)
def test_a_single_image_is_enough(method):
    student_teacher, views = build("class token", method, "aggregator")
    loss, _ = student_teacher(of_images(views, torch.tensor([0])), 0)
    assert torch.isfinite(loss)


@pytest.mark.parametrize("method", METHODS)
def test_the_aggregator_runs_once_per_network_and_resolution_for_the_image_token(method, monkeypatch):
    student_teacher, views = build("no class token", method, "aggregator")
    calls = []
    for network in (student_teacher.student, student_teacher.teacher):
        image_token = network.aggregator.image_token
        monkeypatch.setattr(network.aggregator, "image_token", lambda x, f=image_token: calls.append(x.shape) or f(x))
    student_teacher(views, 0)
    needs = [objective.needs for objective in student_teacher.named_objectives.values()]
    extra = [any(getattr(n, name) for n in needs) for name in ("student_local", "teacher_local")]
    assert len(calls) == 2 + sum(extra)


ASKED_FOR = {  # (student, teacher): how many resolutions each network encodes
    "DINO": ({"dino": {}}, (2, 1)),
    "DINO, center of all crops": ({"dino": {"center_crops": "all"}}, (2, 2)),
    "SelfPatch": ({"selfpatch": {}}, (2, 2)),
    "SelfPatch on global crops": ({"selfpatch": {"crops": "global"}}, (1, 1)),
    "iBOT": ({"ibot": {}}, (1, 1)),
    "DINO + iBOT": ({"dino": {}, "ibot": {}}, (2, 1)),
    "both": ({"dino": {}, "selfpatch": {"crops": "global"}}, (2, 1)),
    "neighbors by another layer": ({"selfpatch": {"crops": "global", "layer": 0}}, (1, 1)),
    "the other crop": ({"ibot": {"view": "other"}}, (1, 1)),
    "the recolored crop": ({"ibot": {"view": "recolored"}}, (1, 1)),
}


@pytest.mark.parametrize("case", ASKED_FOR)
def test_nothing_is_encoded_that_no_objective_needs(case):
    settings, expected = ASKED_FOR[case]
    objectives = ObjectivesConfig(**{"dino": None} | {name: small(name, **given) for name, given in settings.items()})
    student_teacher, views = build("no class token", "dino", "aggregator")
    encoder = student_teacher.student
    student_teacher = StudentTeacher(
        encoder, build_objectives(objectives, encoder.backbone.embed_dim, steps_per_epoch=4)
    )
    calls = {"student": 0, "teacher": 0}
    for name in calls:
        getattr(student_teacher, name).backbone.register_forward_hook(
            lambda *_, name=name: calls.__setitem__(name, calls[name] + 1)
        )
    student_teacher(views._replace(masks=masks_of(student_teacher)), 0)
    assert (calls["student"], calls["teacher"]) == expected
