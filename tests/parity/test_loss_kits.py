"""Loss terms alone against the authors' programs: every losses kit below SELFPATCH_PARITY_KITS (see kits/README.md).

A kit holds logits. An objective is given them as tokens, with heads that let them through.
"""

import json
from typing import NamedTuple

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from selfpatch.backbones.backbone import Tokens
from selfpatch.config import DINOConfig, HeadConfig, SelfDistillationConfig
from selfpatch.config.objectives.ibot import IBOTConfig
from selfpatch.config.objectives.koleo import KoLeoConfig
from selfpatch.config.objectives.moby import MoBYConfig
from selfpatch.config.objectives.moco_v3 import MoCoV3Config
from selfpatch.config.objectives.neco import NeCoConfig
from selfpatch.objectives import neco
from selfpatch.objectives.dino import DINO
from selfpatch.objectives.distillation_branch import DistillationBranch
from selfpatch.objectives.encoder import Encoded, EncodedViews
from selfpatch.objectives.ibot import IBOT
from selfpatch.objectives.koleo import KoLeo
from selfpatch.objectives.moby import MoBY
from selfpatch.objectives.moco_v3 import MoCoV3
from selfpatch.objectives.neco import NeCo
from selfpatch.objectives.self_distillation import sinkhorn
from tests.parity.kits import ROOTS, find_kits

KITS = find_kits("losses.safetensors", "losses.json")
# "epoch" needs no use: the temperature of that epoch is given. Notes are for readers.
KNOWN = {
    "dino": {"loss", "epoch", "teacher_temp", "crops", "student_temp", "center_momentum"},
    "ibot": {"loss", "cls", "patch", "epoch", "teacher_temp", "teacher_patch_temp", "student_temp", "center_momentum"},
    "moco_v3": {"loss", "temperature"},
    "moby": {"loss", "temperature", "place_before", "place_after"},
    "koleo": {"loss"},
    "sinkhorn": {"teacher_temp", "iterations"},
    "neco": {"loss", "overlap_size", "sorting_network", "student_steepness", "teacher_steepness"},
}
NOTES = {"layout", "note"}
TOLERANCE = dict(rtol=1e-5, atol=1e-5)


class Given(dict):
    """Settings or tensors of a kit; one that is not there fails the test, which names it and the kit."""

    def __init__(self, values: dict, owner: str):
        super().__init__(values)
        self._owner = owner

    def __missing__(self, name: str):
        pytest.fail(f"{self._owner} has no {name!r}; it has {', '.join(self)}")


class Kit(NamedTuple):
    """A folder of the program's numbers."""

    name: str
    settings: dict[str, dict]
    tensors: dict[str, Tensor]


@pytest.fixture(params=KITS, ids=lambda kit: kit.name, scope="module")
def kit(request) -> Kit:
    settings = json.loads((request.param / "losses.json").read_text())
    return Kit(request.param.name, settings, load_file(request.param / "losses.safetensors"))


def test_kits_are_found():
    assert KITS, f"no kit of losses below {ROOTS}"


def test_kit_settings_are_all_known(kit):
    """A setting that we do not know would pass unnoticed."""
    unknown = kit.settings.keys() - KNOWN.keys()
    assert not unknown, f"{kit.name}: no loss is called {', '.join(unknown)}"
    for method, given in kit.settings.items():
        unknown = given.keys() - KNOWN[method] - NOTES
        assert not unknown, f"{kit.name}: {method} has settings that are not known: {', '.join(unknown)}"


def test_dino(kit):
    settings, tensors = part_of(kit, "dino")
    student, teacher = leaf(tensors["student"]), tensors["teacher"]
    num_images = len(student) // settings["crops"]
    branch = DINO(student.shape[1], DINOConfig(**logits_as_tokens(student.shape[1], settings)), steps_per_epoch=1)
    expect_logits(branch.branch, tensors["center_before"])
    loss, _ = branch(
        image_views(num_images, student[: len(teacher)], student[len(teacher) :]),
        image_views(num_images, teacher),
        0,
    )
    loss.backward()
    branch.commit()
    torch.testing.assert_close(loss.item(), settings["loss"], **TOLERANCE)
    torch.testing.assert_close(student.grad, tensors["student_grad"], **TOLERANCE)
    torch.testing.assert_close(branch.branch.distillation.center, tensors["center_after"].flatten(), **TOLERANCE)


def test_ibot(kit):
    settings, tensors = part_of(kit, "ibot")
    cls, patches = leaf(tensors["student_cls"]), leaf(tensors["student_patch"])
    local = leaf(tensors["local_cls"]) if "local_cls" in tensors else None
    num_images, grid_size = tensors["masks"].shape[1], tuple(tensors["masks"].shape[2:])
    masks = tensors["masks"].bool().flatten(2).flatten(0, 1)
    dino = DINO(cls.shape[1], DINOConfig(**logits_as_tokens(cls.shape[1], settings)), steps_per_epoch=1)
    patch_settings = settings | {"teacher_temp": settings["teacher_patch_temp"]}
    ibot = IBOT(patches.shape[2], IBOTConfig(**logits_as_tokens(patches.shape[2], patch_settings)), steps_per_epoch=1)
    expect_logits(dino.branch, tensors["center_before"])
    expect_logits(ibot.branch, tensors["patch_center_before"])

    image_loss, _ = dino(image_views(num_images, cls, local), image_views(num_images, tensors["teacher_cls"]), 0)
    patch_loss, _ = ibot(
        patch_views(num_images, patches, grid_size, masks),
        patch_views(num_images, tensors["teacher_patch"], grid_size),
        0,
    )
    (image_loss + patch_loss).backward()
    for objective in (dino, ibot):
        objective.commit()

    torch.testing.assert_close(image_loss.item(), settings["cls"], **TOLERANCE)
    torch.testing.assert_close(patch_loss.item(), settings["patch"], **TOLERANCE)
    torch.testing.assert_close((image_loss + patch_loss).item(), settings["loss"], **TOLERANCE)
    given = {"student_cls": cls, "student_patch": patches} | ({} if local is None else {"local_cls": local})
    for name, tensor in given.items():
        torch.testing.assert_close(tensor.grad, tensors[f"{name}_grad"], **TOLERANCE, msg=name)
    for name, objective in (("center_after", dino), ("patch_center_after", ibot)):
        torch.testing.assert_close(objective.branch.distillation.center, tensors[name].flatten(), **TOLERANCE, msg=name)


def test_moco_v3(kit):
    settings, tensors = part_of(kit, "moco_v3")
    queries = [leaf(tensors[name]) for name in ("q1", "q2")]
    config = MoCoV3Config(temperature=settings["temperature"], hidden_dim=1, output_dim=1)
    objective = MoCoV3(queries[0].shape[1], config, steps_per_epoch=1)
    objective.projector = objective.teacher_projector = objective.predictor = nn.Identity()
    num_images = len(queries[0])
    loss, _ = objective(
        image_views(num_images, torch.cat(queries)),
        image_views(num_images, torch.cat([tensors["k1"], tensors["k2"]])),
        0,
    )
    loss.backward()
    torch.testing.assert_close(loss.item(), settings["loss"], **TOLERANCE)
    for name, query in zip(("q1", "q2"), queries, strict=True):
        torch.testing.assert_close(query.grad, tensors[f"{name}_grad"], **TOLERANCE, msg=name)


def test_neco(kit, monkeypatch):
    settings, tensors = part_of(kit, "neco")
    given = {name: leaf(tensors[name]) for name in ("student", "student_local") if name in tensors}
    kinds = ("overlap_size", "sorting_network", "student_steepness", "teacher_steepness")
    config = NeCoConfig(
        **{name: settings[name] for name in kinds}, hidden_dim=1, output_dim=1,
        crops="all" if "student_local" in given else "global",
    )  # fmt: skip
    objective = NeCo(1, config, steps_per_epoch=1)
    objective.projector = objective.teacher_projector = nn.Identity()
    references = iter(tensors["references"].long())
    monkeypatch.setattr(neco.torch, "randperm", lambda count, **_: next(references))
    boxes = {"global_boxes": tensors["boxes"], "local_boxes": tensors.get("local_boxes")}
    student = located_views(given["student"])._replace(**boxes)
    if "student_local" in given:
        student = student._replace(local_crops=located_views(given["student_local"]).global_crops)
    loss, _ = objective(student, located_views(tensors["teacher"])._replace(**boxes), 0)
    loss.backward()
    assert next(references, None) is None
    torch.testing.assert_close(loss.item(), settings["loss"], **TOLERANCE)
    for name, vectors in given.items():
        torch.testing.assert_close(vectors.grad, tensors[f"{name}_grad"], **TOLERANCE, msg=name)


def test_moby(kit):
    settings, tensors = part_of(kit, "moby")
    queries = [leaf(tensors[name]) for name in ("q1", "q2")]
    queues = torch.stack([tensors["queue1_before"], tensors["queue2_before"]])
    config = MoBYConfig(
        temperature=settings["temperature"], queue_size=queues.shape[1], hidden_dim=1, output_dim=queues.shape[2]
    )
    objective = MoBY(queries[0].shape[1], config, steps_per_epoch=1)
    objective.projector = objective.teacher_projector = objective.predictor = nn.Identity()
    objective.queues.copy_(queues)
    objective.next_place.fill_(settings["place_before"])
    num_images = len(queries[0])
    loss, _ = objective(
        image_views(num_images, torch.cat(queries)),
        image_views(num_images, torch.cat([tensors["k1"], tensors["k2"]])),
        0,
    )
    loss.backward()
    objective.commit()
    torch.testing.assert_close(loss.item(), settings["loss"], **TOLERANCE)
    for name, query in zip(("q1", "q2"), queries, strict=True):
        torch.testing.assert_close(query.grad, tensors[f"{name}_grad"], **TOLERANCE, msg=name)
    for name, queue in zip(("queue1_after", "queue2_after"), objective.queues, strict=True):
        torch.testing.assert_close(queue, tensors[name], **TOLERANCE, msg=name)
    assert objective.next_place == settings["place_after"]


def test_koleo(kit):
    settings, tensors = part_of(kit, "koleo")
    tokens = leaf(tensors["tokens"])  # [G, B, D]
    views = image_views(tokens.shape[1], tokens.flatten(0, 1))
    loss, _ = KoLeo(tokens.shape[2], KoLeoConfig(), steps_per_epoch=1)(views, views, 0)
    loss.backward()
    torch.testing.assert_close(loss.item(), settings["loss"], **TOLERANCE)
    torch.testing.assert_close(tokens.grad, tensors["tokens_grad"], **TOLERANCE)


@torch.no_grad()
def test_sinkhorn(kit):
    settings, tensors = part_of(kit, "sinkhorn")
    targets = sinkhorn(tensors["logits"] / settings["teacher_temp"], settings["iterations"])
    torch.testing.assert_close(targets, tensors["targets"], **TOLERANCE)


def part_of(kit: Kit, method: str) -> tuple[Given, Given]:
    """The settings and tensors of one method; skips a kit without it."""
    if method not in kit.settings:
        pytest.skip(f"{kit.name} is a kit without {method}")
    tensors = {
        name.removeprefix(f"{method}."): tensor for name, tensor in kit.tensors.items() if name.startswith(f"{method}.")
    }
    owner = f"{kit.name}: {method}"
    return Given(kit.settings[method], owner), Given(tensors, owner)


def test_a_kit_that_lacks_a_number_fails_by_name():
    _, tensors = part_of(Kit("losses_x", {"koleo": {"loss": 1.0}}, {"koleo.tokens": torch.ones(1)}), "koleo")
    with pytest.raises(pytest.fail.Exception, match="losses_x: koleo has no 'tokens_grad'; it has tokens"):
        tensors["tokens_grad"]


def leaf(tensor: Tensor) -> Tensor:
    return tensor.clone().requires_grad_()


def logits_as_tokens(num_prototypes: int, settings: dict) -> dict:
    """Settings of an objective whose tokens are logits: a head of that width, and the kit's temperatures."""
    distillation = SelfDistillationConfig(
        student_temperature=settings["student_temp"],
        teacher_temperature=settings["teacher_temp"],
        center_momentum=settings.get("center_momentum", 0.9),
    )
    head = HeadConfig(num_prototypes=num_prototypes, hidden_dim=1, bottleneck_dim=num_prototypes)
    return {"head": head, "distillation": distillation}


def expect_logits(branch: DistillationBranch, center: Tensor) -> None:
    """Heads that give back their input, and the center before the step."""
    for head in (branch.head, branch.teacher_head):
        head.bottleneck = lambda x: x
        with torch.no_grad():
            head.prototypes.weight_v.copy_(torch.eye(len(head.prototypes.weight_v)))
    branch.distillation.center.copy_(center.flatten())


def image_views(num_images: int, global_tokens: Tensor, local_tokens: Tensor | None = None) -> EncodedViews:
    def encoded(image_token: Tensor | None) -> Encoded | None:
        if image_token is None or not len(image_token):
            return None
        return Encoded(Tokens(None, image_token[:, None], (1, 1)), image_token)

    return EncodedViews(num_images, None, encoded(global_tokens), encoded(local_tokens), None, lambda x: x, None)


def patch_views(
    num_images: int, patch_tokens: Tensor, grid_size: tuple[int, int], masks: Tensor | None = None
) -> EncodedViews:
    encoded = Encoded(Tokens(None, patch_tokens, grid_size), patch_tokens.mean(dim=1))
    return EncodedViews(num_images, None, encoded, None, masks, lambda x: x, None)


def located_views(vectors: Tensor) -> EncodedViews:
    """Of vectors [crops, B, rows, columns, Z]."""
    return patch_views(vectors.shape[1], vectors.flatten(2, 3).flatten(0, 1), tuple(vectors.shape[2:4]))
