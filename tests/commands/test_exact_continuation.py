"""Original training states of SelfPatch and DINO: aggregator, heads and centers are taken where they fit."""

import argparse
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from selfpatch.backbones.build import build_backbone
from selfpatch.backbones.pretrained import load_backbone, load_training_state
from selfpatch.commands.run_setup.starting_weights import backbone_settings, has_own_norm, start_from
from selfpatch.config import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    AggregatorConfig,
    BackboneConfig,
    DINOConfig,
    HeadConfig,
    ObjectivesConfig,
    PretrainConfig,
)
from selfpatch.config.io import override
from selfpatch.pretraining.student_teacher import StudentTeacher, build_student_teacher
from selfpatch.recipes import find_recipe
from tests.backbones.checkpoints.layouts import save
from tests.parity.original_selfpatch import convert_training_state
from tests.parity.test_selfpatch_kits import config_of

KIT = Path(__file__).parents[1] / "parity" / "kits" / "kit_a"


@pytest.fixture(scope="module")
def original() -> dict[str, torch.Tensor]:
    """Student and teacher differ, and centers are not zero, as after training."""
    tensors = load_file(KIT / "final.safetensors")
    assert not torch.equal(tensors["student.ca_head.cls_token"], tensors["teacher.ca_head.cls_token"])
    return tensors


@pytest.fixture(scope="module")
def checkpoint(original, tmp_path_factory) -> Path:
    """As main_selfpatch.py saves it: the student behind DistributedDataParallel, centers in the loss."""
    networks = {
        network: {prefix + n.partition(".")[2]: t for n, t in original.items() if n.startswith(f"{network}.")}
        for network, prefix in (("student", "module."), ("teacher", ""))
    }
    centers = {name: original[name] for name in ("center", "patch_center")}
    content = networks | {"dino_loss": centers, "epoch": 3, "args": argparse.Namespace(arch="vit_small")}
    return save(tmp_path_factory.mktemp("original") / "checkpoint.pth", content)


def build(config: PretrainConfig, image_size: int) -> StudentTeacher:
    torch.manual_seed(1)
    backbone = build_backbone(config.backbone, (image_size, image_size), mean=IMAGENET_MEAN, std=IMAGENET_STD)
    return build_student_teacher(backbone, config, steps_per_epoch=4)


def kit_config() -> PretrainConfig:
    return config_of(json.loads((KIT / "expected.json").read_text())["settings"])


def test_all_of_it_with_the_settings_of_the_original(original, checkpoint):
    side = int(original["student.backbone.pos_embed"].shape[1] ** 0.5)
    student_teacher = build(kit_config(), side * 16)
    text = start_from(student_teacher, str(checkpoint))
    state, expected = student_teacher.state_dict(), convert_training_state(original)
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], expected[name]) for name in expected)
    assert text.startswith("student and teacher, aggregator, heads and centers, each its own: an exact continuation")


def test_aggregator_alone_where_heads_have_another_form(original, checkpoint):
    """Both networks then start as the teacher, and the norm that the backbone borrowed is the aggregator's again."""
    config = override(find_recipe("continue-selfpatch"), {
        "backbone": {"name": "vit_small_patch16_224", "embed_dim": 48, "depth": 3, "num_heads": 6, "class_token": False,
                     "final_norm": False, "drop_path": 0.0},
        "aggregator.image_token": "aggregator", "crops.global_size": 96, "crops.local_size": 48,
        "objectives.dino.head.num_prototypes": 16, "objectives.selfpatch.head.num_prototypes": 16,
    })  # fmt: skip
    config = override(
        config, {"backbone.depth": kit_config().backbone.depth, "backbone.num_heads": kit_config().backbone.num_heads}
    )
    student_teacher = build(config, 96)
    text = start_from(student_teacher, str(checkpoint))
    expected = convert_training_state(original)
    for network in (student_teacher.student, student_teacher.teacher):
        assert network.aggregator is not None
        for name, tensor in network.aggregator.state_dict().items():
            assert torch.equal(tensor, expected[f"teacher.aggregator.{name}"]), name
        assert torch.equal(
            network.backbone.model.blocks[0].attn.qkv.weight,
            expected["teacher.backbone.model.blocks.0.attn.qkv.weight"],
        )
    assert "its aggregator as well; heads start anew: objectives.dino.branch." in text


def dino_config() -> PretrainConfig:
    head = HeadConfig(num_prototypes=24, hidden_dim=32, bottleneck_dim=16)
    backbone = BackboneConfig(name="vit_tiny_patch16_224", patch_size=8, embed_dim=24, depth=2, num_heads=3)
    return PretrainConfig(backbone=backbone, objectives=ObjectivesConfig(dino=DINOConfig(head=head)))


def dino_names(state: dict[str, torch.Tensor]) -> dict[str, dict[str, torch.Tensor]]:
    """The same under the names of facebookresearch/dino."""
    content: dict[str, dict] = {"student": {}, "teacher": {}, "dino_loss": {}}
    for name, tensor in state.items():
        network, own = "student", name
        if name.startswith("objectives"):
            own = name.removeprefix("objectives.dino.branch.").replace("prototypes", "last_layer")
            network = "teacher" if own.startswith("teacher_") else "student"
            own = own.removeprefix("teacher_")
        else:
            network, _, own = name.replace("backbone.model.", "backbone.").partition(".")
        if name.endswith("distillation.center"):
            content["dino_loss"]["center"] = tensor[None]
        else:
            content[network][f"module.{own}" if network == "student" else own] = tensor
    return content


def test_dino(tmp_path):
    trained = build(dino_config(), 32)
    for tensor in trained.state_dict().values():
        torch.nn.init.normal_(tensor)
    path = save(tmp_path / "checkpoint.pth", dino_names(trained.state_dict()))
    student_teacher = build(dino_config(), 32)
    assert "an exact continuation" in start_from(student_teacher, str(path))
    state = student_teacher.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in trained.state_dict().items())

    # Without one of its tensors heads start anew, and both networks as the teacher.
    content = dino_names(trained.state_dict())
    del content["dino_loss"]
    other = build(dino_config(), 32)
    text = start_from(other, str(save(tmp_path / "checkpoint.pth", content)))
    assert "heads start anew: objectives.dino.branch.distillation.center is none there and (24,) here" in text
    assert torch.equal(other.student.backbone.model.pos_embed, trained.teacher.backbone.model.pos_embed)


def test_nothing_but_a_backbone(tmp_path):
    trained = build(dino_config(), 32).state_dict()
    backbone = {name.partition("model.")[2]: t for name, t in trained.items() if name.startswith("teacher.")}
    assert load_training_state(save(tmp_path / "backbone.pth", backbone)) == {}
    assert load_training_state("timm:vit_tiny_patch16_224") == {}


def test_settings_of_the_backbone_of_a_file(checkpoint):
    """What a run takes over, and that a borrowed norm goes to the aggregator where there is one."""
    source = load_backbone(checkpoint, num_heads=6)
    settings = backbone_settings(source, patch_size=None)
    assert (settings["name"], settings["class_token"], settings["norm_eps"]) == ("vit_small_patch16_224", False, None)
    assert not has_own_norm(PretrainConfig(aggregator=AggregatorConfig()), source)
    assert has_own_norm(PretrainConfig(), source)
